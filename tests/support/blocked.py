"""A client that is blocked on the stage (tests.support.datapath), and what its node is asked about it."""

from __future__ import annotations

from proxy.forward.backend import Backend, BackendState
from proxy.resp.encode import array, bulk, encode_command
from tests.support.datapath import KEY_A, A, End, Stage
from tests.support.dialogue import GET_A

POP = encode_command("BLPOP", KEY_A, "0")
POPPED = array([bulk("b"), bulk("v")])
NODE_ID = 77


def unblock(mode: str = "ERROR") -> bytes:
    return encode_command("CLIENT", "UNBLOCK", str(NODE_ID), mode)


def leases(stage: Stage, node: object = A) -> list[Backend]:
    return [b for b in stage.router.nodes[node].backends() if b.leased and b.state != BackendState.CLOSED]


def blocked(stage: Stage, frame: bytes = POP) -> tuple[End, End]:
    """A client that is blocked; its side and the node's."""
    client = stage.client()
    client.send(frame)
    stage.turn()
    for lease in leases(stage):
        lease.client_id = NODE_ID
    node = stage.node(A)
    assert node.get() == frame
    assert stage.accepted.blocked
    assert stage.count("blocked") == 1
    return client, node


def shared(stage: Stage) -> End:
    """Node A's connection that all share, made by another client."""
    other = stage.client()
    other.send(GET_A)
    stage.turn()
    node = stage.node(A)
    assert node.get() == GET_A
    node.send(bulk("x"))
    stage.turn()
    assert other.get() == bulk("x")
    return node


def free(stage: Stage) -> None:
    assert not stage.accepted.blocked
    assert stage.count("blocked") == 0
