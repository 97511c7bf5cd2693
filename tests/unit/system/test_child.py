"""proxy.system.child: a child ends with the process that started it, however that is brought about."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.embedded import wait_for
from proxy.system import child
from tests.support.processes import alive

STARTS = """
import sys
from proxy.system import child
if sys.argv[1] == "fork":
    child._setpriv = lambda: ""
print(child.start_mortal(["sleep", "60"]).pid, flush=True)
sys.stdin.read()
"""
ways = pytest.mark.parametrize("way", ["setpriv", "fork"])


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "fork":
        monkeypatch.setattr(child, "_setpriv", lambda: "")


@ways
def test_it_dies_with_its_parent(way: str) -> None:
    command = [sys.executable, "-c", STARTS, way]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_for(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", 10, "it is the program")
        parent.kill()
    wait_for(lambda: not alive(pid), 10, "it is dead")


@pytest.mark.parametrize("way", ["setpriv", "fork"], indirect=True)
def test_it_is_the_program(way: None, tmp_path: Path) -> None:
    """Its pid, its arguments as they are, its exit code, its environment."""
    script = "import os, sys; print(os.getpid(), *sys.argv[1:], os.environ['GIVEN']); sys.exit(7)"
    words = [sys.executable, "-c", script, "a b", "$HOME", ""]
    with open(tmp_path / "out", "wb") as out:
        process = child.start_mortal(words, stdout=out, env=os.environ | {"GIVEN": "given"})
        assert process.wait(10) == 7
    assert (tmp_path / "out").read_text() == f"{process.pid} a b $HOME  given\n"


@pytest.mark.parametrize("way", ["setpriv", "fork"], indirect=True)
def test_a_program_that_cannot_be_started(way: None, tmp_path: Path) -> None:
    (tmp_path / "text").touch()
    with pytest.raises(FileNotFoundError):
        child.start_mortal([str(tmp_path / "none")])
    with pytest.raises(PermissionError):
        child.start_mortal([str(tmp_path / "text")])


def test_one_whose_parent_is_another_does_not_begin(tmp_path: Path) -> None:
    done = subprocess.run(["/bin/sh", "-c", child._IF_IT_LIVES, "1", "touch", str(tmp_path / "begun")], check=False)
    assert done.returncode == 1
    assert list(tmp_path.iterdir()) == []
