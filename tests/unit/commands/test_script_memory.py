"""What is remembered of scripts, and what goes first when there is no room."""

from __future__ import annotations

import hashlib

from proxy.commands.script_memory import OVERHEAD, ScriptMemory, sha1_of

SIZE = 1000
ENTRY = SIZE + OVERHEAD
LIMIT = 40 * ENTRY


def script(n: int) -> tuple[bytes, bytes]:
    body = (b"return %d --" % n).ljust(SIZE)
    return sha1_of(body), body


def test_sha1() -> None:
    assert sha1_of(b"return 1") == hashlib.sha1(b"return 1").hexdigest().encode()


def test_what_is_added_is_there_until_all_is_forgotten() -> None:
    memory = ScriptMemory(LIMIT)
    sha, body = script(1)
    assert memory.get(sha) is None
    memory.add(sha, body)
    memory.add(sha, body)
    assert (memory.get(sha), len(memory), memory.size) == (body, 1, ENTRY)
    memory.clear()
    assert (memory.get(sha), len(memory), memory.size) == (None, 0, 0)


def test_the_limit_holds_and_the_oldest_goes() -> None:
    memory = ScriptMemory(LIMIT)
    for n in range(100):
        memory.add(*script(n), keep=n % 2 == 0)
        assert memory.size <= LIMIT
        assert memory.size == ENTRY * len(memory)
    assert len(memory) == 40
    assert memory.evicted == 60
    assert memory.get(script(0)[0]) is None
    assert memory.get(script(99)[0]) is not None


def test_what_is_used_outlives_a_flood_of_new_ones() -> None:
    memory = ScriptMemory(LIMIT)
    for n in range(10):
        memory.add(*script(n), keep=True)
    memory.add(*script(10))
    memory.add(*script(10))  # seen twice
    memory.add(*script(11))
    assert memory.get(script(11)[0])  # used
    for n in range(1000, 2000):
        memory.add(*script(n))
    assert all(memory.get(script(n)[0]) for n in range(12))
    assert memory.get(script(1000)[0]) is None
    assert memory.get(script(1999)[0]) is not None


def test_new_ones_find_room_beside_those_that_are_kept() -> None:
    memory = ScriptMemory(LIMIT)
    for n in range(100):
        memory.add(*script(n), keep=True)
    memory.add(*script(1000))
    assert memory.get(script(1000)[0]) is not None
    assert memory.get(script(99)[0]) is not None


def test_use_counts_among_the_kept() -> None:
    memory = ScriptMemory(LIMIT)
    for n in range(40):
        memory.add(*script(n), keep=True)
    assert memory.get(script(0)[0])
    memory.add(*script(40), keep=True)
    assert memory.get(script(0)[0])
    assert memory.get(script(1)[0]) is None


def test_what_is_too_long_is_not_remembered() -> None:
    memory = ScriptMemory(LIMIT)
    long = b" " * (LIMIT // 4)
    memory.add(sha1_of(long), long)
    assert (len(memory), memory.takes(long)) == (0, False)
    huge = ScriptMemory(1 << 30)
    assert huge.takes(b" " * (1 << 20))
    assert not huge.takes(b" " * ((1 << 20) + 1))
    assert not ScriptMemory(0).takes(b"")


def test_another_limit_is_in_force_at_once() -> None:
    memory = ScriptMemory(LIMIT)
    for n in range(40):
        memory.add(*script(n), keep=n < 20)
    memory.resize(LIMIT // 2)
    assert memory.size <= LIMIT // 2
    memory.resize(0)
    assert (memory.size, len(memory)) == (0, 0)
