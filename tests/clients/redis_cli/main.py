"""redis-cli in the modes people use it in: commands, a terminal, subscriptions, MONITOR, and its measurements."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

from checks import HOST, PORT, NotTried, check, equal, report, restart

CLI = ["redis-cli", "-h", HOST, "-p", str(PORT)]
PROMPT = f"{HOST}:{PORT}> "


def cli(*words: str, data: str | None = None, limit_s: float = 30) -> str:
    done = subprocess.run([*CLI, *words], input=data, capture_output=True, text=True, timeout=limit_s)
    equal(done.returncode, 0)
    return done.stdout


class Terminal:
    """redis-cli as a person uses it."""

    def __init__(self, *options: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*CLI, *options],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"TERM": "dumb", "REDISCLI_HISTFILE": "/dev/null"},
        )
        os.close(slave)
        self.shown = ""

    def say(self, line: str) -> None:
        os.write(self.master, line.encode() + b"\n")

    def read(self, limit_s: float) -> None:
        """Whatever comes next."""
        if not select.select([self.master], [], [], limit_s)[0]:
            raise TimeoutError(f"nothing more is shown after {self.shown[-300:]!r}")
        self.shown += os.read(self.master, 1 << 16).decode(errors="replace").replace("\r\n", "\n")

    def until(self, pattern: str, limit_s: float = 10.0) -> str:
        """What is shown up to the first match, which is taken away."""
        end = time.monotonic() + limit_s
        while not (found := re.search(pattern, self.shown)):
            self.read(max(0.0, end - time.monotonic()))
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before


@contextlib.contextmanager
def terminal(*options: str) -> Iterator[Terminal]:
    one = Terminal(*options)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()
        os.close(one.master)


@contextlib.contextmanager
def pipe(*words: str) -> Iterator[Callable[[int], list[str]]]:
    """redis-cli whose output is read by a program: gives what takes its next lines."""
    process = subprocess.Popen([*CLI, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    output, had = process.stdout.fileno(), b""

    def take(count: int) -> list[str]:
        nonlocal had
        end = time.monotonic() + 10
        while had.count(b"\n") < count:
            if not select.select([output], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"no more lines after {had!r}")
            if not (chunk := os.read(output, 1 << 16)):
                raise EOFError(f"it ended with {had!r}")
            had += chunk
        *lines, had = had.split(b"\n", count)
        return [line.decode() for line in lines]

    try:
        yield take
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


report("redis-cli", cli("--version").split()[1])

with check("commands"):
    for n in range(30):
        equal(cli("SET", f"cli:{n}", str(n)), "OK\n")
    equal(cli("MGET", *[f"cli:{n}" for n in range(30)]).split(), [str(n) for n in range(30)])
    equal(len(cli("--scan", "--pattern", "cli:*").split()), 30)
    equal(cli(data="MULTI\nSET {t}a 1\nINCR {t}a\nEXEC\n").split(), ["OK", "QUEUED", "QUEUED", "OK", "2"])

with check("blocking pops"), terminal() as waits:
    waits.until(PROMPT)
    waits.say("BLPOP waited 0")
    time.sleep(0.2)
    cli("RPUSH", "waited", "item")
    equal('2) "item"' in waits.until(PROMPT), True)
    waits.say("BLPOP waited 0.1")
    equal("(nil)" in waits.until(PROMPT), True)

for name, options in {"RESP2": (), "RESP3": ("-3",)}.items():
    with check(f"SUBSCRIBE in a terminal, {name}"), terminal(*options) as reads:
        reads.until(PROMPT)
        reads.say("SUBSCRIBE news other")
        reads.until(r"1\) \"subscribe\"\n2\) \"news\"\n3\) \(integer\) 1")
        reads.until(r"1\) \"subscribe\"\n2\) \"other\"\n3\) \(integer\) 2")
        cli("PUBLISH", "news", "hello")
        reads.until(r"1\) \"message\"\n2\) \"news\"\n3\) \"hello\"")

    with check(f"PSUBSCRIBE in a pipe, {name}"), pipe(*options, "PSUBSCRIBE", "n*") as take:
        equal(take(3), ["psubscribe", "n*", "1"])
        cli("PUBLISH", "news", "hello")
        equal(take(4), ["pmessage", "n*", "news", "hello"])

with check("SSUBSCRIBE in a pipe"), pipe("SSUBSCRIBE", "shard") as take:
    equal(take(3), ["ssubscribe", "shard", "1"])
    equal(cli("SPUBLISH", "shard", "hello"), "1\n")
    equal(take(3), ["smessage", "shard", "hello"])

with check("keyspace events of every shard"), pipe("PSUBSCRIBE", "__keyspace@0__:ev:*") as take:
    cli("CONFIG", "SET", "notify-keyspace-events", "K$")
    equal(take(3), ["psubscribe", "__keyspace@0__:ev:*", "1"])
    for n in range(9):
        cli("SET", f"ev:{n}", "1")
    heard = [take(4) for _ in range(9)]
    equal(sorted(event[2] for event in heard), [f"__keyspace@0__:ev:{n}" for n in range(9)])
    equal({event[3] for event in heard}, {"set"})
cli("CONFIG", "SET", "notify-keyspace-events", "")

with check("MONITOR"), pipe("MONITOR") as take:
    equal(take(1), ["OK"])  # before the proxy serves it: "ERR command 'monitor' is not served by this proxy yet"
    cli("SET", "monitored", "two words")
    lines = take(1)
    while '"monitored"' not in lines[-1]:
        lines = take(1)
    equal(bool(re.fullmatch(r'\d+\.\d{6} \[0 [^ \]]+:\d+\] "SET" "monitored" "two words"', lines[-1])), True)

with check("--latency"):
    low, high, average, samples = (float(word) for word in cli("--latency", "--raw", "-i", "0.3").split())
    equal((low <= average <= high, samples > 1), (True, True))

with check("--latency-history"), terminal("--latency-history", "-i", "0.3") as shows:
    shows.until(r"samples\)[^\n]*seconds range")

with check("--latency-dist"), terminal("--latency-dist", "-i", "0.3") as shows:
    shows.until(r"\. 0\.125 ms|\.01|1 ms|0\.1", 15)
    equal("rror" in shows.shown, False)

with check("--bigkeys, --memkeys"):
    for mode in ("--bigkeys", "--memkeys"):
        equal("Biggest string found" in re.sub(r" +", " ", cli(mode)), True)

with check("--hotkeys"):
    # It needs OBJECT FREQ, so the servers' LFU.
    before = cli("CONFIG", "GET", "maxmemory-policy").split()[1]
    if "OK" not in cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lfu"):
        raise NotTried("maxmemory-policy cannot be set here")
    try:
        cli("-r", "200", "GET", "cli:7")
        said = cli("--hotkeys")
        equal("hot key found with counter" in said and "cli:7" in said, True)
    finally:
        cli("CONFIG", "SET", "maxmemory-policy", before)

with check("--stat"), terminal("--stat", "-i", "0.1") as shows:
    shows.until(r"keys +mem")
    shows.until(r"\n\d+ +[\d.]+[KMG] +\d+ +")

with check("--pipe"):
    done = cli("--pipe", data="".join(f"SET pipe:{n} {n}\n" for n in range(1000)))
    equal("errors: 0, replies: 1000" in done, True)

with check("--eval"), tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
    file.write("return {KEYS[1], ARGV[1]}")
    file.flush()
    equal(cli("--eval", file.name, "k", ",", "v"), "k\nv\n")

with check("reconnect after a restart"), terminal() as person:
    person.until(PROMPT)
    person.say("SET before 1")
    person.until(PROMPT)
    restart()
    person.say("SET after 1")
    if "not connected" in person.until("OK|not connected> "):  # it was told by this command, and says so
        person.say("SET after 1")
        person.until("OK")
