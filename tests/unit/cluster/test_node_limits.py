"""What servers answer to CONFIG GET, and what they may make of it."""

from __future__ import annotations

import pytest

from proxy.cluster.node_limits import COMMANDS, limit
from proxy.resp.decode import ReplyError


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ([b"proto-max-bulk-len", b"536870912"], 512 << 20),
        ({b"proto-max-bulk-len": b"1048576"}, 1 << 20),
        ([b"x", b"1048575"], 0),  # below what a server lets be set
        ([b"x", b"9223372036854775807"], 0),
        ([b"x", b"0"], 0),
        ([b"x", b"many"], 0),
        ([b"x", None], 0),
        ([b"x"], 0),
        ([], 0),
        ({}, 0),
        (None, 0),
        (7, 0),
        (ReplyError("ERR unknown command"), 0),
    ],
)
def test_limit(reply: object, told: int) -> None:
    assert limit(reply) == told


def test_the_order_of_the_answers() -> None:
    assert [command[2] for command in COMMANDS] == ["proto-max-bulk-len", "client-query-buffer-limit"]
