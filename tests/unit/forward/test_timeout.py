"""The timeout of a blocking command on the stage: sent on with what is left of it."""

from __future__ import annotations

import pytest

from proxy.resp.encode import encode_command
from tests.support.datapath import KEY_A, A, B, End, Play, Stage
from tests.support.dialogue import moved


def blocked(stage: Stage, frame: bytes) -> End:
    """A client is blocked; the node's side."""
    stage.client().send(frame)
    stage.turn()
    node = stage.node(A)
    assert node.get() == frame
    return node


@pytest.mark.parametrize(
    ("frame", "at"),
    [
        (encode_command("BLMPOP", "0.5", "1", KEY_A, "LEFT"), 4),
        (encode_command("BRPOPLPUSH", KEY_A, KEY_A, ".5"), 8),
        (encode_command("BLMOVE", KEY_A, KEY_A, "LEFT", "LEFT", "5e-1"), 12),
        (encode_command("XREAD", "COUNT", "1", "block", "500", "STREAMS", KEY_A, "$"), 10),
        (encode_command("XREADGROUP", "GROUP", "BLOCK", "block", "BLOCK", "500", "STREAMS", KEY_A, ">"), 12),
    ],
)
def test_where_the_timeout_stands(play: Play, frame: bytes, at: int) -> None:
    stage = play()
    node = blocked(stage, frame)
    node.send(moved(B))
    stage.turn()
    words = stage.node(B).get().split(b"\r\n")
    old = frame.split(b"\r\n")
    left = float(words[at]) / (1000 if b"STREAMS" in frame else 1)
    assert 0 < left <= 0.5
    assert words[: at - 1] + words[at + 1 :] == old[: at - 1] + old[at + 1 :]


@pytest.mark.parametrize("timeout", ["0", "nan", "-1", "x", "1e99", "0.0"])
def test_what_is_no_timeout_stays_as_it_is(play: Play, timeout: str) -> None:
    stage = play()
    frame = encode_command("BLPOP", KEY_A, timeout)
    node = blocked(stage, frame)
    node.send(moved(B))
    stage.turn()
    assert stage.node(B).get() == frame
