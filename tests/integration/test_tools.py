"""The tools people have at hand, redis-cli and redis-benchmark, work through the proxy as with one server.

Debian's (package redis-tools); they are of the age of Redis 7.0 and used for both kinds of server.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.embedded import EmbeddedCluster, die_with_parent
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import encode

pytestmark = pytest.mark.skipif(
    not (shutil.which("redis-cli") and shutil.which("redis-benchmark")),
    reason="redis-cli and redis-benchmark are not on PATH (Debian: redis-tools)",
)
KEYS = 1000  # more than one page of SCAN on each primary
TYPES = {"string": "SET", "list": "RPUSH", "set": "SADD", "hash": "HSET", "zset": "ZADD", "stream": "XADD"}
BAD = re.compile(r"\b(ERR|Error|WARNING|MOVED|CROSSSLOT|NOSCRIPT)\b|is not (served|allowed)", re.IGNORECASE)


def cli(proxy: ProxyDaemon, *options: str, data: bytes = b"", timeout_s: float = 60.0) -> str:
    """What redis-cli prints; it ends well and complains of nothing."""
    command = ["redis-cli", "-p", str(proxy.port), *options]
    done = subprocess.run(command, input=data, capture_output=True, timeout=timeout_s, preexec_fn=die_with_parent())
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, said
    assert not BAD.search(said), said
    return said


@pytest.fixture
def filled(proxy: ProxyDaemon) -> list[str]:
    """Keys of every type, on every primary."""
    names = [f"key:{n}" for n in range(KEYS)]
    words = {
        "SET": ["value"],
        "RPUSH": ["a", "b", "c"],
        "SADD": ["a", "b"],
        "HSET": ["f", "v"],
        "ZADD": ["1", "a"],
        "XADD": ["1-1", "f", "v"],
    }
    with proxy.raw() as client:
        client.send(b"".join(encode(kind, name, *words[kind]) for name, kind in kinds_of(names)))
        assert not [reply for reply in client.frames(len(names)) if reply.startswith(b"-")]
    return names


def kinds_of(names: list[str]) -> Iterator[tuple[str, str]]:
    commands = list(TYPES.values())
    return ((name, commands[n % len(commands)]) for n, name in enumerate(names))


class Terminal:
    """redis-cli as a person uses it: in a terminal."""

    def __init__(self, proxy: ProxyDaemon, *options: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            ["redis-cli", "-p", str(proxy.port), *options],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"TERM": "dumb", "REDISCLI_HISTFILE": "/dev/null"},
            preexec_fn=die_with_parent(),
        )
        os.close(slave)
        self.shown = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def say(self, line: str) -> None:
        os.write(self.master, line.encode() + b"\n")

    def until(self, text: str, timeout_s: float = 20.0) -> str:
        """What is shown since the last call, to the first `text` behind it."""
        deadline = time.monotonic() + timeout_s
        while text not in self.shown:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} is not shown: {self.shown!r}"
            self.shown += os.read(self.master, 1 << 16).decode(errors="replace").replace("\r\n", "\n")
        before, _, self.shown = self.shown.partition(text)
        return before + text


@pytest.mark.parametrize("protocol", [[], ["-3"]], ids=["resp2", "resp3"])
def test_interactive(protocol: list[str], proxy: ProxyDaemon) -> None:
    prompt = f"127.0.0.1:{proxy.port}> "
    with Terminal(proxy, *protocol) as terminal:
        terminal.until(prompt)
        for line, answer in [
            ("SET a 1", "OK"),
            ("INCR a", "(integer) 2"),
            ("MGET a nosuch", '1) "2"\n2) (nil)'),
            ("HSET h f v", "(integer) 1"),
            ("HGETALL h", '1# "f" => "v"' if protocol else '1) "f"\n2) "v"'),
            ("nosuch x", "(error) ERR unknown command 'nosuch', with args beginning with: 'x' "),
            ("CLIENT SETNAME me", "OK"),
            ("CLIENT GETNAME", '"me"'),
        ]:
            terminal.say(line)
            assert answer in terminal.until(prompt), (line, answer)
        terminal.say("HELP GET")
        assert "summary:" in terminal.until(prompt)
        terminal.say("QUIT")
        assert terminal.process.wait(10) == 0


def test_interactive_transaction(proxy: ProxyDaemon) -> None:
    prompt = f"127.0.0.1:{proxy.port}> "
    inside = f"127.0.0.1:{proxy.port}(TX)> "
    with Terminal(proxy) as terminal:
        terminal.until(prompt)
        terminal.say("MULTI")
        assert "OK" in terminal.until(inside)
        terminal.say("SET a 1")
        assert "QUEUED" in terminal.until(inside)
        terminal.say("INCR a")
        assert "QUEUED" in terminal.until(inside)
        terminal.say("EXEC")
        assert "1) OK\n2) (integer) 2" in terminal.until(prompt)


def test_scan(proxy: ProxyDaemon, filled: list[str]) -> None:
    assert sorted(cli(proxy, "--scan").split()) == sorted(filled)
    assert set(cli(proxy, "--scan", "--pattern", "key:1*").split()) == {
        name for name in filled if name.startswith("key:1")
    }


@pytest.mark.parametrize("mode", ["--bigkeys", "--memkeys"])
def test_sampling_of_keys(mode: str, proxy: ProxyDaemon, filled: list[str]) -> None:
    said = cli(proxy, mode)
    assert f"Sampled {KEYS} keys in the keyspace!" in said
    for kind in TYPES:
        assert re.search(rf"Biggest\s+{kind}\s+found", said), said


def test_stat(proxy: ProxyDaemon, filled: list[str]) -> None:
    with Terminal(proxy, "--stat", "-i", "0.1") as terminal:
        terminal.until("keys")
        rows = terminal.until("requests") and [terminal.until("\n") for _ in range(4)]
        numbers = rows[-1].split()
        assert numbers[0] == str(KEYS), rows
        assert "nan" not in rows[-1]


def test_latency(proxy: ProxyDaemon) -> None:
    for interval in ("0.3", "1", "3"):  # for more than one of them, on this machine
        low, high, average, samples = cli(proxy, "--latency", "--raw", "-i", interval).split()
        if int(samples) > 1:
            break
    assert int(samples) > 1
    assert 0 <= int(low) <= float(average) <= int(high)


def test_pipe(proxy: ProxyDaemon) -> None:
    frames = b"".join(encode("SET", f"p:{n}", n) for n in range(3000))
    assert "errors: 0, replies: 3000" in cli(proxy, "--pipe", data=frames)
    lines = b"".join(b"SET q:%d %d\n" % (n, n) for n in range(3000))
    assert "errors: 0, replies: 3000" in cli(proxy, "--pipe", data=lines)
    assert cli(proxy, "GET", "q:2999") == "2999\n"


def test_eval_of_a_file(proxy: ProxyDaemon, tmp_path: Path) -> None:
    script = tmp_path / "script.lua"
    script.write_text("redis.call('set', KEYS[1], ARGV[1]) return {KEYS[1], redis.call('get', KEYS[1])}")
    assert cli(proxy, "--eval", str(script), "{k}1", ",", "hello") == "{k}1\nhello\n"


def test_one_command_after_another(proxy: ProxyDaemon) -> None:
    assert cli(proxy, "-r", "3", "INCR", "n") == "1\n2\n3\n"
    assert cli(proxy, "-x", "SET", "x", data=b"from standard input") == "OK\n"
    assert cli(proxy, "-3", "--csv", "LPUSH", "l", "a") == "1\n"
    assert cli(proxy, "--json", "MGET", "x", "nosuch") == '["from standard input",null]\n'
    assert cli(proxy, data=b"SET a 1\nGET a\n") == "OK\n1\n"


def test_a_numbered_database(server: str, request: pytest.FixtureRequest) -> None:
    options = {"cluster-databases": "16"} if "valkey" in server else {}
    with (
        EmbeddedCluster(server, replicas=0, node_timeout_ms=15000, options=options) as cluster,
        ProxyDaemon(cluster.seeds[:1]) as proxy,
    ):
        if not options:  # Redis Cluster has one database
            command = ["redis-cli", "-p", str(proxy.port), "-n", "1", "GET", "k"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
            assert "SELECT is not allowed in cluster mode" in done.stdout + done.stderr
            return
        assert cli(proxy, "-n", "1", "SET", "k", "one") == "OK\n"
        assert cli(proxy, "-n", "1", "GET", "k") == "one\n"
        assert cli(proxy, "-n", "0", "GET", "k") == "\n"
        with Terminal(proxy, "-n", "3") as terminal:
            terminal.until(f"127.0.0.1:{proxy.port}[3]> ")
            terminal.say("DBSIZE")
            terminal.until("(integer) 0")


@pytest.mark.parametrize(
    "options",
    [["-n", "1000"], ["-n", "4000", "-P", "16"], ["-n", "2000", "--threads", "2"], ["-n", "1000", "-3", "-r", "1000"]],
    ids=["default list", "pipelined", "threads", "resp3 and random keys"],
)
def test_benchmark(options: list[str], proxy: ProxyDaemon) -> None:
    command = ["redis-benchmark", "-p", str(proxy.port), "-q", "-c", "20", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, preexec_fn=die_with_parent())
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-2000:]
    assert not BAD.search(said), said[-2000:]
    for name in ("PING_INLINE", "SET", "GET", "INCR", "LPUSH", "ZADD", "SPOP", "LRANGE_600", "MSET (10 keys)"):
        assert re.search(rf"{re.escape(name)}[^\r\n]*: [\d.]+ requests per second", said), name
