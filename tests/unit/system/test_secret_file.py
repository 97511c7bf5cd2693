"""proxy.system.secret_file: what a file with a secret gives, and what it must not show."""

import os
from pathlib import Path

import pytest

from proxy.system.secret_file import MOST, SecretFile, read_secret


def test_a_secret(tmp_path):
    (tmp_path / "secret").write_bytes(b" s3cr3t \r\n")
    found = read_secret("secret", tmp_path)
    assert found == SecretFile("secret", " s3cr3t ")
    assert "s3cr3t" not in repr(found)
    assert read_secret(str(tmp_path / "secret"), Path()).secret == " s3cr3t "
    assert read_secret("", tmp_path) == SecretFile()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file or directory"), (b"\n", "is empty"), (b"\xff", "not UTF-8 text")],
)
def test_no_secret(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_secret("secret", tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/dev/zero", "cannot read the secret in '/dev/zero': not a regular file"),
        ("pipe", "cannot read the secret in 'pipe': not a regular file"),
        ("folder", "cannot read the secret in 'folder': "),
        ("long", "cannot read the secret in 'long': longer than 64 KB"),
    ],
)
def test_what_has_no_end(tmp_path, name, reason):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "long").write_bytes(b"x" * (MOST + 1))
    with pytest.raises(ValueError, match=reason):
        read_secret(name, tmp_path)
    (tmp_path / "most").write_bytes(b"x" * MOST)
    assert len(read_secret("most", tmp_path).secret) == MOST


def test_nothing_stays_open(tmp_path):
    """A reload is tried again and again until the file is mended."""
    before = len(os.listdir("/proc/self/fd"))
    for name in ("/dev/zero", str(tmp_path)):
        for _ in range(3):
            with pytest.raises(ValueError, match="cannot read the secret"):
                read_secret(name, tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_path(tmp_path):
    with pytest.raises(ValueError, match="should be the path of a file"):
        read_secret(5, tmp_path)
