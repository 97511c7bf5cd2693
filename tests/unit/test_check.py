"""proxy.check: what this machine makes of a configuration; nothing is left and nobody is disturbed."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from proxy import check
from proxy.config import models as config
from proxy.config.models import Settings

ROOT = Path(__file__).parents[2]
MOST = 2**31 - 1


def settings(**sections: object) -> Settings:
    return Settings.model_validate({"cluster": {"seeds": ["a:1"]}, **sections})


def listening(*addresses: str, **sections: object) -> Settings:
    return settings(listeners=[{"address": address} for address in addresses], **sections)


def told(of: Settings) -> list[str]:
    return [f"{'.'.join(map(str, one.option))}: {one.reason}" for one in check.conflicts(of)]


# What could not be opened


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:80", "localhost:1", "0.0.0.0:1", "[::]:1"])
def test_addresses_of_this_machine(address):
    """Also where it has no IPv6, as a start has it: then [::1] is a fault here and there."""
    if "::" in address and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    assert told(listening(address)) == []


def test_addresses_of_other_machines():
    assert told(listening("203.0.113.1:1", admin={"address": "203.0.113.2:1"})) == [
        "listeners.0.address: 203.0.113.1 is not an address of this machine",
        "admin.address: 203.0.113.2 is not an address of this machine",
    ]


def test_unknown_hosts():
    [found] = told(listening("nosuch.invalid:1"))
    assert found.startswith("listeners.0.address: the host nosuch.invalid is not known: ")


def test_a_port_in_use_is_no_fault():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert told(listening(f"127.0.0.1:{sock.getsockname()[1]}")) == []
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.accept()  # nobody has come


def test_unix_sockets(tmp_path):
    def fault(path: str) -> str:
        return "".join(told(listening(f"unix:{path}"))).removeprefix("listeners.0.address: ")

    assert fault(f"{tmp_path}/x") == ""
    assert not list(tmp_path.iterdir())
    assert fault("/nosuch/x") == "the folder /nosuch does not exist"
    (tmp_path / "file").write_text("")
    assert fault(f"{tmp_path}/file") == "there is a file that is no socket"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{tmp_path}/sock")
        assert fault(f"{tmp_path}/sock") == ""


def test_log_files(tmp_path):
    def fault(path: object) -> str:
        return "".join(told(settings(log={"file": str(path)}))).removeprefix("log.file: ")

    assert fault(tmp_path / "new.log") == ""
    assert not list(tmp_path.iterdir())
    (tmp_path / "old.log").write_text("line\n")
    before = (tmp_path / "old.log").stat()
    assert fault(tmp_path / "old.log") == ""
    assert (tmp_path / "old.log").stat().st_mtime_ns == before.st_mtime_ns
    assert fault(tmp_path / "none" / "x.log") == f"the folder {tmp_path}/none does not exist"
    assert fault(tmp_path) == "cannot be opened for append: Is a directory"
    os.mkfifo(tmp_path / "pipe")
    assert fault(tmp_path / "pipe").startswith("cannot be opened for append: ")  # and does not wait for a reader
    assert fault("/dev/null") == ""


def test_what_may_not_be_written_to():
    """As another user, where this one may do everything."""
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is closed to others
        _what_may_not_be_written_to(Path(folder))


def _what_may_not_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "closed").mkdir(mode=0o555)
    (tmp_path / "hidden" / "inner").mkdir(parents=True)
    (tmp_path / "hidden").chmod(0o000)
    (tmp_path / "proxy.log").write_text("")
    (tmp_path / "proxy.log").chmod(0o444)
    (tmp_path / "proxy.yaml").write_text(
        f"listeners: [{{address: 'unix:{tmp_path}/closed/x'}}, {{address: 'unix:{tmp_path}/hidden/inner/x'}}]\n"
        "cluster: {seeds: ['a:1']}\n"
        f"log: {{file: '{tmp_path}/proxy.log'}}\nadmin: {{address: off}}\n"
    )
    code = f"""
import os, sys
from proxy import check
from proxy.config.models import load
settings = load("{tmp_path}/proxy.yaml")
if os.geteuid() == 0:
    os.seteuid(65534)
for one in check.conflicts(settings):
    print(one.reason)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    (tmp_path / "hidden").chmod(0o700)
    assert done.stdout.splitlines() == [
        "cannot be opened for append: Permission denied",
        f"the folder {tmp_path}/closed cannot be written to",
        f"the folder {tmp_path}/hidden/inner cannot be used: Permission denied",
    ], done.stderr


# Warnings


@pytest.fixture
def write(tmp_path):
    def writer(name: str, text: str, mode: int) -> Path:
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
        return tmp_path / name

    return writer


def test_nothing_to_say(write):
    path = write("proxy.yaml", "cluster: {seeds: ['a:1'], password: x}\n", 0o600)
    assert check.warnings(config.load(path), path) == []


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_files_with_secrets_that_others_can_read(write, mode):
    write("base.yaml", "clients: {password: y}\n", mode)
    write("harmless.yaml", "log: {level: debug}\n", 0o644)
    path = write("proxy.yaml", "include: ['*e*s.yaml', base.yaml]\ncluster: {seeds: ['a:1'], password: x}\n", mode)
    assert check.warnings(config.load(path), path) == [
        f"{file} has a password in it and can be read by other users (mode {mode:04o})"
        for file in (path.parent / "base.yaml", path)
    ]


def test_the_password_of_administrators_alone_is_a_secret(write):
    path = write("proxy.yaml", "cluster: {seeds: ['a:1']}\nclients: {admin_password: x}\n", 0o644)
    assert check.warnings(config.load(path), path) == [
        f"{path} has a password in it and can be read by other users (mode 0644)"
    ]


def test_a_password_of_the_environment_is_not_in_the_file(write, monkeypatch):
    monkeypatch.setenv("PASSWORD", "x")
    path = write("proxy.yaml", "cluster: {seeds: ['a:1'], password: '${PASSWORD}'}\n", 0o644)
    assert check.warnings(config.load(path), path) == []


def test_a_command_of_our_own_can_be_denied():
    assert check.command_warnings(settings(commands={"deny": ["proxy"]})) == []


def test_too_few_descriptors():
    code = """
from proxy import check
from proxy.config.models import Settings
settings = Settings.model_validate({"cluster": {"seeds": ["a:1"]}, "clients": {"max_clients": 400}, "workers": 2})
print(*check.warnings(settings), sep="\\n")
"""

    def output(hard: int) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard)),
        )
        return done.stdout + done.stderr

    assert output(200).startswith(
        "max_clients lowered from 400 to 272: the limit of open files is 200 and each of 2 work"
    )
    assert output(912) == "\n"  # the soft limit is raised at the start


def test_commands_nobody_knows():
    of = settings(commands={"allow": ["debug", "nosuch"], "deny": ["config|nosuch", "@dangerous", "@nosuch"]})
    assert check.warnings(of) == [
        f"commands.{option}: no command or category known here is called {name}"
        for option, name in (("allow", "nosuch"), ("deny", "config|nosuch"), ("deny", "@nosuch"))
    ]


@pytest.mark.parametrize(
    ("deny", "taken"),
    [(["auth"], "auth"), (["HELLO"], "hello"), (["@connection"], "auth and hello"), (["client"], ""), ([], "")],
)
def test_nobody_could_give_the_password(deny, taken):
    text = f"commands.deny takes away {taken}, by which clients give the password (clients.password)"
    of = settings(commands={"deny": deny}, clients={"password": "p"})
    assert check.warnings(of) == ([text] if taken else [])
    assert check.warnings(settings(commands={"deny": deny})) == []


def test_allowed_and_dangerous():
    of = settings(commands={"allow": ["@dangerous", "debug", "SHUTDOWN", "replicaof"]})
    assert check.command_warnings(of) == [
        "commands.allow: @dangerous is a whole category, with commands that can stop or empty servers",
        "commands.allow: any client can stop a server, or break the cluster, with replicaof",
        "commands.allow: any client can stop a server, or break the cluster, with shutdown",
    ]


def test_somaxconn():
    most = int(check.SOMAXCONN.read_text())
    of = settings(listeners=[{"address": "127.0.0.1:1", "backlog": MOST}, {"address": "127.0.0.1:2", "backlog": 1}])
    assert check.warnings(of) == [
        f"the backlog of 127.0.0.1:1 is {MOST}, but the kernel's net.core.somaxconn allows {most}"
    ]


@pytest.mark.parametrize(
    ("address", "clients", "open_to_all"),
    [
        ("0.0.0.0:1", {}, True),
        ("[::]:1", {}, True),
        ("host:1", {}, True),
        ("0.0.0.0:1", {"password": "x"}, False),
        ("127.0.0.2:1", {}, False),
        ("[::1]:1", {}, False),
        ("LOCALHOST:1", {}, False),
        ("unix:/x", {}, False),
    ],
)
def test_listeners_open_to_all(address, clients, open_to_all):
    found = [f"{address} can be used from other machines without a password"] if open_to_all else []
    assert check.warnings(listening(address, clients=clients)) == found
