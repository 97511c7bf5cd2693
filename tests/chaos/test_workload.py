"""The workload that counts (tests.support.workload) is not blind: what somebody else does to its keys shows at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proxy.embedded import HOST, wait_for
from tests.support.cluster import Standalone, servers
from tests.support.workload import APART, Known, Workload

FOUND = {"pop": "BLPOP: ", "message": "message: ", "get": "GET ", "mset": "MGET "}  # or INCR: by which reply


@pytest.fixture(scope="module")
def plain() -> Iterator[Standalone]:
    with Standalone(servers()["valkey"]) as started:
        yield started


def test_nobody_disturbs_it(plain: Standalone) -> None:
    for apart in (False, True):
        with Workload((HOST, plain.port), 14, apart=apart) as load:
            load.advance(20)
        assert (load.told.wrong, load.told.ended, dict(load.told.errors)) == ([], [], {})
        assert load.told.answered > 14 * 20
        assert not apart or set(load.told.done) == set(APART)


@pytest.mark.parametrize("kind", [*APART, "mset"])
def test_what_is_not_as_it_has_to_be(plain: Standalone, kind: str) -> None:
    """By the kind of step that finds it."""
    with plain.raw() as raw, Workload((HOST, plain.port), len(APART), apart=kind in APART) as load:
        mine = f"{load.name}:{APART.index(kind) if kind in APART else 0}"

        def forged() -> bool:
            match kind:
                case "pop":
                    raw.command("RPUSH", f"{mine}:list", "forged")
                case "message":
                    raw.command("PUBLISH", f"{mine}:channel", "forged")
                case _:
                    pattern = f"{mine}:t*" if kind == "mset" else f"*{mine}:*"
                    for key in raw.command("KEYS", pattern).split(b"\r\n"):
                        if mine.encode() in key:
                            raw.command("SET", key, "1000000")
            return any(wrong.startswith(FOUND.get(kind, "INCR ")) for wrong in load.told.wrong)

        wait_for(forged, 10, f"it is found: {load.told}")


def test_a_connection_that_ends(plain: Standalone) -> None:
    with plain.raw() as raw, Workload((HOST, plain.port), 2) as load:
        raw.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        wait_for(lambda: len(load.told.ended) == 2, 10, "both say so")


def test_what_is_known_of_a_counter() -> None:
    known = Known()
    assert known.wrong(1, 1) == ""
    assert known.wrong(1) == ""
    assert known.wrong(1, 1) == "1 instead of 2"  # lost
    known = Known(5, doubtful=2)
    assert known.wrong(8) == "8 instead of 5..7"  # doubled
    known = Known(5, doubtful=2)
    assert known.wrong(6) == ""
    assert known.wrong(7) == "7 instead of 6"  # in doubt no longer
