"""proxy.remote: commands that ask a running proxy, against a small HTTP server that obeys the signals."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy import cli, remote
from proxy.embedded import die_with_parent

ROOT = Path(__file__).parents[2]
FORBIDDEN = ("pydantic", "yaml", "asyncio", "http.client", "json", "uvloop", "proxy.config")
# Answers as the proxy does, on the socket given as descriptor argv[1]; argv[2]: how it takes signals.
FAKE = """
import http.server, json, os, signal, socket, sys, time

how = json.loads(sys.argv[2])
flags = []
signal.signal(signal.SIGHUP, lambda *_: flags.append("reload"))
signal.signal(signal.SIGUSR2, lambda *_: flags.append("upgrade"))
state = how["state"]

def me():
    ticks = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19])
    state["proxy"].update({"pid": os.getpid(), "start_ticks": ticks + how.get("ticks_off", 0)})

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(state).encode() if self.path == "/api/state" else how.get("livez", "live").encode()
        self.send_response(how.get("status", 200) if self.path == "/livez" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass

me()
first = os.getpid()
server = http.server.HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=int(sys.argv[1]))
server.timeout = 0.02
due = None
while True:
    server.handle_request()
    if flags and due is None:
        due = time.monotonic() + how.get("takes_s", 0.1)
    if due is None or time.monotonic() < due:
        continue
    due, what = None, flags.pop(0)
    if how.get("dies"):
        os._exit(1)
    if how.get("deaf"):
        continue
    if "moves_to" in how:
        server.socket.close()
        server.socket = socket.create_server(("127.0.0.1", how["moves_to"]))
    if "follows" in how:
        if os.fork():
            os._exit(0)
        me()
        state["proxy"]["predecessor"] = how["follows"] or first
    state[what]["attempts"] += 1
    if what == "reload":
        state[what]["begun_s"] = how.get("begun_s") or time.monotonic()
        state[what]["covered"] = state[what]["requests"] = state[what]["requests"] + 1
    state[what].update(how.get(what, {}))
    if what == "upgrade" and state["upgrade"]["state"] == "done":
        child = os.fork()
        if child:
            server.socket.close()
            os.waitpid(child, 0)
            os._exit(0)
        state["proxy"]["version"] = "9.9"
        me()
"""
STATE: dict[str, Any] = {
    "proxy": {
        "version": "1.0",
        "started_s": 0,
        "run_id": "x",
        "source": "proxy.yaml",
        "draining": False,
        "listening": ["127.0.0.1:7617"],
        "admin": "127.0.0.1:9617",
    },
    "reload": {
        "attempts": 3,
        "requests": 3,
        "covered": 3,
        "successful": 3,
        "at_s": 0,
        "error": "",
        "faults": [],
        "changes": [],
    },
    "upgrade": {"attempts": 1, "state": "failed", "error": "an older one", "pid": 0},
}


class Fake:
    """The server as a process, and its address."""

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self.process = process
        self.address = address

    def run(self, *words: str) -> int:
        """The command with its address."""
        return cli.main([*words, "--admin", self.address])


@pytest.fixture
def start() -> Iterator[Callable[..., Fake]]:
    started = []

    def starter(**how: Any) -> Fake:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            process = subprocess.Popen(
                [sys.executable, "-c", FAKE, str(sock.fileno()), json.dumps({"state": copy.deepcopy(STATE)} | how)],
                pass_fds=[sock.fileno()],
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
            started.append(process)
            port = sock.getsockname()[1]
        fake = Fake(process, f"127.0.0.1:{port}")
        # The socket listens already: the first answer comes when the handlers are there.
        remote.get(remote.Where(fake.address), "/livez", 10)
        return fake

    yield starter
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def scripted(answer: bytes, *, close: bool = True) -> str:
    """The address of a server that gives this answer once."""
    sock = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with sock:
            connection, _ = sock.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)
                if not close:
                    connection.recv(1)

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{sock.getsockname()[1]}"


# healthcheck


def test_healthcheck(start, capfd):
    fake = start()
    assert fake.run("healthcheck") == 0
    assert capfd.readouterr() == ("", f"redis-proxy: alive: {fake.address} answers 200: live\n")


def test_healthcheck_of_one_that_is_not_well(start, capfd):
    fake = start(status=503, livez="worker 1 is \x1b[31msilent\n")
    assert fake.run("healthcheck") == 1
    assert capfd.readouterr().err == (f"redis-proxy: not alive: {fake.address} answers 503: worker 1 is ?[31msilent\n")


def test_healthcheck_when_nobody_answers(capfd):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        started_s = time.monotonic()
        assert cli.main(["healthcheck", "--admin", address]) == 1  # connected, but not accepted
        assert 1.9 < time.monotonic() - started_s < 4
    assert capfd.readouterr().err == f"redis-proxy: not alive: nobody answers at {address} within 2 s\n"
    assert cli.main(["healthcheck", "--admin", address]) == 1
    assert capfd.readouterr().err == f"redis-proxy: not alive: nobody answers at {address}: Connection refused\n"


def test_an_answer_that_drips_is_limited_as_a_whole():
    sock = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip() -> None:
        connection, _ = sock.accept()
        with connection, sock:
            while not stop.wait(0.1):
                try:
                    connection.sendall(b"H")
                except OSError:
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    started_s = time.monotonic()
    with pytest.raises(remote.Unanswered, match=r"within 0\.5 s"):
        remote.get(remote.Where(f"127.0.0.1:{sock.getsockname()[1]}"), "/livez", 0.5)
    assert time.monotonic() - started_s < 3
    stop.set()
    thread.join()


@pytest.mark.parametrize(
    "answer", [b"", b"-ERR unknown command 'GET'\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", b"HTTP/1.1"]
)
def test_what_is_no_answer(answer):
    with pytest.raises(remote.Unanswered, match="is no proxy"):
        remote.get(remote.Where(scripted(answer)), "/livez")


def test_an_answer_with_a_length_is_not_waited_for_further():
    where = remote.Where(scripted(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", close=False))
    assert remote.get(where, "/livez") == (200, b"ok")


def test_healthcheck_imports_next_to_nothing(start):
    fake = start()
    code = f"""
import sys
from proxy import cli
code = cli.main(["healthcheck", "--admin", "{fake.address}"])
print([name for name in {FORBIDDEN!r} if name in sys.modules])
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


# Where


@pytest.mark.parametrize("written", ["9617", "host", ":9617", "host:", "host:0", "host:x", "host:70000"])
def test_no_address(written, capfd):
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", "--admin", written])
    assert ended.value.code == 2
    assert f"the administration address is HOST:PORT, not '{written}'" in capfd.readouterr().err


def test_the_address_in_a_file(tmp_path):
    path = tmp_path / "proxy.yaml"
    assert str(remote.Where()) == "127.0.0.1:9617"
    path.write_text("cluster: {seeds: ['a:1'], password: '${NOT_OURS}'}\n")
    assert str(remote.Where(file=str(path))) == "127.0.0.1:9617"
    (tmp_path / "more.yaml").write_text("admin: {address: '[::1]:1'}\n")
    path.write_text("include: [more.yaml]\n")
    assert str(remote.Where(file=str(path))) == "[::1]:1"
    assert str(remote.Where("a:1", str(path))) == "a:1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("admin: {address: off}\n", "admin.address is off"),
        ("admin: {address: ''}\n", "admin.address is off"),
    ],
)
def test_no_address_in_a_file(tmp_path, text, reason, capfd):
    path = tmp_path / "proxy.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", "-c", str(path)])
    assert ended.value.code == 2
    assert reason in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("admin: {address: x}\n", ":1: admin.address: the administration address is HOST:PORT, not 'x'\n"),
        ("workers: 2\nadmin: [\n", ":3: not YAML: while parsing a flow node, "),
        (None, ": cannot read: No such file or directory\n"),
    ],
)
@pytest.mark.parametrize(("command", "code"), [("reload", 78), ("upgrade", 78), ("status", 78), ("healthcheck", 1)])
def test_a_bad_file(tmp_path, text, fault, command, code, capfd):
    """Half written, say: its faults as `check` tells them, and no usage, for there is nothing wrong with that."""
    path = tmp_path / "proxy.yaml"
    if text is not None:
        path.write_text(text)
    assert cli.main([command, "-c", str(path)]) == code
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"{path}{fault}")
    assert told.err.count("\n") == 1


# status


def test_status(start, capfd):
    fake = start()
    assert fake.run("status") == 0
    assert capfd.readouterr().out.startswith(f"redis-proxy 1.0, pid {fake.process.pid}, ")
    assert fake.run("status", "--json") == 0
    assert json.loads(capfd.readouterr().out)["proxy"]["pid"] == fake.process.pid


def test_status_of_nobody(capfd):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = f"127.0.0.1:{sock.getsockname()[1]}"
    assert cli.main(["status", "--admin", address]) == 1
    assert capfd.readouterr() == ("", f"redis-proxy: nobody answers at {address}: Connection refused\n")


@pytest.mark.parametrize("body", [b"no json", b"[]", b"{}", b'{"proxy": 5}'])
def test_status_of_something_else(body, capfd):
    address = scripted(b"HTTP/1.1 200 OK\r\n\r\n" + body)
    assert cli.main(["status", "--admin", address]) == 1
    assert capfd.readouterr().err == f"redis-proxy: what answers at {address} tells no state (HTTP status 200)\n"


# reload


def test_reload(start, capfd):
    fake = start(reload={"changes": ["clients.max_clients: 5 -> 6", "log.level"]}, takes_s=0.3)
    assert fake.run("reload") == 0
    assert capfd.readouterr() == ("reloaded\n  clients.max_clients: 5 -> 6\n  log.level\n", "")


def test_a_refused_reload(start, capfd):
    faults = ["proxy.yaml:3: foo: unknown option 'foo'", "proxy.yaml:4: bar: is \x1b[0m wrong"]
    fake = start(reload={"error": "2 faults in the configuration", "faults": faults})
    assert fake.run("reload") == 1
    assert capfd.readouterr() == (
        "",
        "proxy.yaml:3: foo: unknown option 'foo'\nproxy.yaml:4: bar: is ?[0m wrong\n"
        "redis-proxy: not reloaded: 2 faults in the configuration\n",
    )


def test_a_reload_without_an_outcome(start, capfd):
    assert start(deaf=True).run("reload", "--timeout", "0.3") == 1
    assert capfd.readouterr().err == "redis-proxy: the reload has no outcome within 0.3 s\n"


def test_a_proxy_that_ends_during_the_reload(start, capfd):
    fake = start(dies=True)
    threading.Thread(target=fake.process.wait, daemon=True).start()  # no zombie: it would count as there
    assert fake.run("reload") == 1
    assert capfd.readouterr().err == f"redis-proxy: the proxy (pid {fake.process.pid}) has ended\n"


def test_a_reload_that_moves_the_admin_address(start, tmp_path, capfd):
    """The old address answers no more: the file says where to ask now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    fake = start(moves_to=port)
    path = tmp_path / "proxy.yaml"
    path.write_text(f"admin: {{address: '127.0.0.1:{port}'}}\n")
    assert cli.main(["reload", "-c", str(path)]) == 1
    assert capfd.readouterr().err == (
        f"redis-proxy: nobody answers at 127.0.0.1:{port}: Connection refused (if admin.address in {path} is new, say"
        " with --admin where the proxy answers now)\n"
    )
    assert fake.run("reload", "-c", str(path)) == 0
    assert remote.state(remote.Where(f"127.0.0.1:{port}"))["proxy"]["pid"] == fake.process.pid


def test_a_reload_during_an_upgrade(start, capfd):
    """It is the successor's, and waited for."""
    fake = start(follows=0, reload={"changes": ["log.level"]})
    threading.Thread(target=fake.process.wait, daemon=True).start()  # it is gone before its successor has reloaded
    assert fake.run("reload") == 0
    pid = remote.state(remote.Where(fake.address))["proxy"]["pid"]
    assert pid != fake.process.pid
    told = f"redis-proxy: an upgrade was under way, its successor answers: pid {pid}\n"
    assert capfd.readouterr() == ("reloaded\n  log.level\n", told)


def test_an_older_reload_of_the_successor(start, capfd):
    """What it had read before the request came does not count."""
    fake = start(follows=0, begun_s=1.0)
    threading.Thread(target=fake.process.wait, daemon=True).start()
    assert fake.run("reload", "--timeout", "1") == 1
    assert capfd.readouterr().err == "redis-proxy: the reload has no outcome within 1 s\n"


def test_a_reload_that_somebody_else_answers(start, capfd):
    fake = start(follows=1)
    assert fake.run("reload") == 1
    assert "another process answers at" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["reload", "upgrade"])
def test_no_signal_for_a_process_that_is_not_proven(command, start, capfd):
    """SIGHUP and SIGUSR2 would end most others."""
    fake = start(ticks_off=1)
    assert fake.run(command) == 1
    assert capfd.readouterr().err == (
        f"redis-proxy: the proxy that answers has pid {fake.process.pid} where it runs, and here that is not its"
        " process: run this command on its machine, or in its container\n"
    )
    assert remote.state(remote.Where(fake.address))[command]["attempts"] == STATE[command]["attempts"]


# upgrade


def test_upgrade(start, capfd):
    fake = start(upgrade={"state": "done", "error": ""})
    assert fake.run("upgrade") == 0
    out = capfd.readouterr().out
    pid = remote.state(remote.Where(fake.address))["proxy"]["pid"]
    assert pid != fake.process.pid
    assert out == f"upgraded: pid {pid}, version 9.9\n"


def test_a_failed_upgrade(start, capfd):
    """The failure of an older one, which the state still tells, is not taken for that of this one."""
    fake = start(upgrade={"state": "failed", "error": "the successor was not ready within 20 s"}, takes_s=0.3)
    assert fake.run("upgrade") == 1
    assert capfd.readouterr().err == "redis-proxy: not upgraded: the successor was not ready within 20 s\n"


def test_start_ticks():
    assert isinstance(remote.start_ticks(os.getpid()), int)
    assert remote.start_ticks(2**22 + 1) is None
