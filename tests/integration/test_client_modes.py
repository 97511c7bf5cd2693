"""CLIENT REPLY and PAUSE, HELLO and RESET in the middle of a connection, beside a real server asked the same."""

from __future__ import annotations

import random
import re
import select
import time

import pytest

from tests.support.cluster import Standalone, spread_keys
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, Word, encode

ON, OFF, SKIP = (("CLIENT", "REPLY", mode) for mode in ("ON", "OFF", "SKIP"))


def said(client: RawClient, commands: list[tuple[Word, ...]]) -> bytes:
    """Everything it says to them; a last ON and ECHO show that it was everything."""
    client.send(b"".join(encode(*words) for words in [*commands, ON, ("ECHO", "the end")]))
    frames = []
    while not frames or frames[-1] != b"$7\r\nthe end\r\n":
        frames.append(client.frame())
    return b"".join(frames)


@pytest.mark.parametrize(
    "commands",
    [
        [OFF, ("GET", "k"), ("NOSUCH",), ("GET",), OFF, SKIP, ON, ("PING",)],
        [SKIP, SKIP, ("GET", "k"), ("ECHO", "one"), ("ECHO", "two")],
        [SKIP, ON, ("ECHO", "one")],
        [SKIP, OFF, ("ECHO", "one")],
        [OFF, SKIP, ("ECHO", "one"), ON, ("ECHO", "two")],
        [OFF, ("RESET",), ("PING",)],
        [SKIP, ("RESET",), ("PING",)],
        [SKIP, ("CLIENT", "REPLY", "x"), ("PING",)],
        [SKIP, ("CLIENT", "REPLY"), ("PING",)],
        [SKIP, ("CLIENT", "GETNAME"), ("CLIENT", "ID", "x"), SKIP, ("CLIENT", "LIST", "ID", "999999"), ("PING",)],
        [OFF, ("MSET", "a", "1", "b", "2"), ("MGET", "a", "b"), ("DEL", "a", "b"), ON, ("MGET", "a", "b")],
    ],
    ids=str,
)
def test_reply(commands: list[tuple[Word, ...]], proxy: ProxyDaemon, standalone: Standalone) -> None:
    with proxy.raw() as through, standalone.raw() as direct:
        assert said(through, commands) == said(direct, commands)


def test_reply_in_long_pipelines(proxy: ProxyDaemon, standalone: Standalone) -> None:
    """Random ones: each reply that is said is the right one, in its place, and each command is carried out."""
    keys = spread_keys()
    for seed in range(5):
        chance = random.Random(seed)
        commands: list[tuple[Word, ...]] = []
        for n in range(3000):
            key = chance.choice(keys)
            commands.append(
                chance.choice(
                    [
                        ON, OFF, SKIP, SKIP, ON, ("INCR", f"{key}:n"), ("APPEND", f"{key}:a", "x"), ("PING", str(n)),
                        ("GET", f"{key}:n"), ("MGET", *(f"{key}:n" for key in keys)), ("GET",),
                        ("LPUSH", f"{key}:n", "x"),
                    ]
                )
            )  # fmt: skip
        with proxy.raw() as through, standalone.raw() as direct:
            direct.command("FLUSHALL")
            through.command("DEL", *(f"{key}:{kind}" for key in keys for kind in "na"))
            assert said(through, commands) == said(direct, commands)


@pytest.mark.parametrize("how", [(("HELLO", 3), ("HELLO", 2)), (("HELLO", 3), ("RESET",))], ids=str)
def test_another_protocol_in_the_middle(how: tuple[tuple[Word, ...], ...], proxy: ProxyDaemon) -> None:
    """With commands under way before and behind: each is answered in the protocol of its moment, in order."""
    keys = spread_keys()
    to_three, to_two = how
    with proxy.raw() as client:
        for key in keys:
            client.command("HSET", f"{key}:h", "f", "v")
        client.send(
            b"".join(
                encode("HGETALL", f"{key}:h") * 5
                + encode("INCR", f"{key}:i")
                + encode(*to_three)
                + encode("HGETALL", f"{key}:h") * 5
                + encode("INCR", f"{key}:i")
                + encode(*to_two)
                for key in keys * 20
            )
        )
        for n in range(20):
            for _ in keys:
                assert client.frames(5) == [b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n"] * 5
                assert client.frame() == b":%d\r\n" % (2 * n + 1)
                assert client.frame().startswith(b"%7\r\n")
                assert client.frames(5) == [b"%1\r\n$1\r\nf\r\n$1\r\nv\r\n"] * 5
                assert client.frame() == b":%d\r\n" % (2 * n + 2)
                assert client.frame().startswith(b"*14\r\n" if to_two[0] == "HELLO" else b"+RESET\r\n")


def test_reset_takes_everything_back(proxy: ProxyDaemon) -> None:
    with proxy.raw() as client:
        for words in (("HELLO", 3, "SETNAME", "x"), ("CLIENT", "NO-EVICT", "on"), ("CLIENT", "NO-TOUCH", "on")):
            client.command(*words)
        client.command("READONLY")
        info = client.command("CLIENT", "INFO")
        assert re.search(rb" name=x .* flags=reT .* resp=3 ", info)
        client.send(encode(*OFF) + encode("GET", "k") + encode("RESET"))
        assert client.frame() == b"+RESET\r\n"
        info = client.command("CLIENT", "INFO")
        assert re.search(rb" name= .* flags=N .* resp=2 ", info)


def held(client: RawClient, words: tuple[Word, ...], pauser: RawClient | None) -> bool:
    """pauser: who is not held itself and can tell who is; None: nobody can, and time has to tell."""
    if pauser is not None:
        number = client.command("CLIENT", "ID")[1:-2]
        client.send(encode(*words))
        while not select.select([client.sock], [], [], 0.005)[0]:
            if b" flags=b " in pauser.command("CLIENT", "LIST", "ID", number):
                return True
        client.frame()
        return False
    client.sock.settimeout(0.1)
    try:
        client.command(*words)
        return False
    except TimeoutError:
        return True
    finally:
        client.sock.settimeout(10)


@pytest.mark.parametrize("mode", ["WRITE", pytest.param("ALL", marks=pytest.mark.long)])  # 10 s, mostly of waiting
def test_what_a_pause_holds(mode: str, proxy: ProxyDaemon, standalone: Standalone) -> None:
    """The same commands as a real server."""
    commands: list[tuple[Word, ...]] = [
        ("SET", "a", "1"), ("GET", "a"), ("SET", "a"), ("PFCOUNT", "x"), ("PUBLISH", "a", "b"), ("EVAL", "return 1", 0),
        ("EVAL_RO", "return 1", 0), ("PING",), ("TIME",), ("CLIENT", "ID"), ("CLIENT", "LIST", "ID", "1"), ("HELLO",),
        ("DEL", "a"), ("EXPIRE", "a", "1"), ("GETEX", "a"), ("OBJECT", "ENCODING", "a"), ("TOUCH", "a"), ("SORT", "a"),
        ("SORT_RO", "a"), ("XREAD", "STREAMS", "x", "0"), ("COMMAND", "COUNT"), ("SPUBLISH", "a", "b"), ("ECHO", "x"),
    ]  # fmt: skip
    found: list[list[bool]] = []
    for start in (proxy.raw, standalone.raw):
        with start() as pauser:
            for_ms = 60000 if mode == "WRITE" else 100 * len(commands) + 3000
            assert pauser.command("CLIENT", "PAUSE", for_ms, mode) == b"+OK\r\n"
            answers = []
            for words in commands:
                with start() as client:
                    answers.append(held(client, words, pauser if mode == "WRITE" else None))
            found.append(answers)
            if mode == "WRITE":
                assert pauser.command("CLIENT", "UNPAUSE") == b"+OK\r\n"
            else:
                begun_s = time.monotonic()
                assert pauser.command("PING") == b"+PONG\r\n"
                assert time.monotonic() - begun_s < 10
    assert dict(zip(commands, found[0], strict=True)) == dict(zip(commands, found[1], strict=True))
