"""ROLE from what the nodes tell, and LASTSAVE from all primaries."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.forward.ask import Ask, Later
from proxy.serve import table
from proxy.serve.node_infos import Infos, NodeInfo
from tests.unit.serve.fakes import FakeClient, context


class FakeInfos:
    """Fits NodeInfos."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def wait(self, whole: bool, proto: int, done: Any) -> None:
        assert (whole, proto) == (False, 3)
        self.waiting.append(done)


def test_role_waits_for_the_nodes() -> None:
    infos = FakeInfos()
    ctx = context(infos=infos)
    assert isinstance(table.answer(ctx, FakeClient(proto=3), [b"ROLE"]), Later)
    assert table.answer(ctx, FakeClient(proto=3, pending=1), [b"ROLE"]) is None
    assert len(infos.waiting) == 1


@pytest.mark.parametrize(
    ("offsets", "said"), [([], b":0"), (["5", "7"], b":12"), (["5", None], b":5"), (["junk"], b":0"), (["-1"], b":0")]
)
def test_role(offsets: list[str | None], said: bytes) -> None:
    nodes = [
        NodeInfo("n:1", False, None if offset is None else {"replication": [f"master_repl_offset:{offset}"]})
        for offset in offsets
    ]
    said_to: list[bytes] = []
    from proxy.serve import role

    class Answered:
        def answer(self, made: bytes) -> None:
            said_to.append(made)

    role._told(Answered(), Infos(nodes, False, 0.0))  # type: ignore[arg-type]
    assert said_to == [b"*3\r\n$6\r\nmaster\r\n%b\r\n*0\r\n" % said]


def test_role_before_any_node() -> None:
    assert table.answer(context(), FakeClient(), [b"role"]) == b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"
    assert table.answer(context(), FakeClient(), [b"role", b"x"]) == (
        b"-ERR wrong number of arguments for 'role' command\r\n"
    )


def test_lastsave_is_the_latest() -> None:
    ask = table.answer(context(), FakeClient(), [b"LASTSAVE"])
    assert isinstance(ask, Ask)
    assert [where for where, _, _ in ask.parts] == ["primaries"]  # type: ignore[attr-defined]
    assert ask.finish([b":5\r\n", b":9\r\n", b":7\r\n"]) == b":9\r\n"  # type: ignore[attr-defined]
    assert ask.finish([b":5\r\n", b"$1\r\nx\r\n"]).startswith(b"-")  # type: ignore[attr-defined]
