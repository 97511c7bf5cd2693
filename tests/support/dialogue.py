"""What the dialogues on the stage say again and again: frames, redirections, refusals, a responder that asks.

Why: the tests of proxy.forward are one file per module and share their vocabulary here.
Called by: tests/unit/forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxy.cluster.topology import Address
from proxy.forward.ask import Ask
from proxy.forward.backend import Backend
from proxy.forward.gate import set_paused
from proxy.resp.encode import encode_command
from proxy.resp.readers import CommandReader
from tests.support.datapath import KEY_A, KEY_B, KEY_C, SLOT_A, A, End, Stage

D = Address("10.0.0.4", 7004)  # not a node of the usual topology
ASKING = encode_command("ASKING")
PING = encode_command("PING")
GET_A, GET_B, GET_C = (encode_command("GET", key) for key in (KEY_A, KEY_B, KEY_C))
EXISTS_A = encode_command("EXISTS", KEY_A)
SET_A, SET_B, SET_C = (encode_command("SET", key, "1") for key in (KEY_A, KEY_B, KEY_C))
REFUSALS = {
    "tryagain": b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
    "clusterdown": b"-CLUSTERDOWN The cluster is down\r\n",
    "loading": b"-LOADING Redis is loading the dataset in memory\r\n",
    "readonly": b"-READONLY You can't write against a read only replica.\r\n",
    "masterdown": b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
}
INTERNAL = b"-ERR internal error\r\n"


def moved(address: Address | str, slot: int = SLOT_A) -> bytes:
    return b"-MOVED %d %s\r\n" % (slot, str(address).encode())


def ask(address: Address | str, slot: int = SLOT_A) -> bytes:
    return b"-ASK %d %s\r\n" % (slot, str(address).encode())


def exchange(stage: Stage, address: Address, wanted: bytes, answer: bytes) -> None:
    """The node's newest connection gets something (in time), and answers."""
    got = bytearray()

    def come() -> bool:
        for end in stage.nodes.get(address, []):
            got.extend(end.get())
        return bool(got)

    stage.until(come)
    assert bytes(got) == wanted
    stage.node(address).send(answer)
    stage.turn(2)


def answer(stage: Stage, replies: dict[bytes, bytes]) -> list[bytes]:
    """Every node answers each frame it has got; the frames, sorted."""
    stage.turn()
    got = []
    for ends in stage.nodes.values():
        for end in ends:
            for frame, _ in CommandReader().feed(end.get()):
                got.append(frame)
                end.send(replies[frame])
    stage.turn()
    return sorted(got)


def asking(stage: Stage, make: Callable[[list[bytes]], Any]) -> None:
    """Has the responder answer ECHO with what `make` returns for its arguments: an Ask, bytes, None, or whatever."""

    class AskResponder(type(stage.responder)):  # type: ignore[misc]
        def answer(self, client: Any, args: list[bytes]) -> Any:
            return make(args) if args[0].lower() == b"echo" else super().answer(client, args)

    stage.path.responder = AskResponder(
        stage.context,
        on_notice=lambda event, address: stage.notices.append(event),
        on_raised=lambda what, error: stage.raised.append((what, error)),
    )


def always(stage: Stage, *parts: Any, **options: Any) -> None:
    """Has the responder answer ECHO with one and the same Ask."""
    asking(stage, lambda args: Ask(list(parts), **options))


def pending(stage: Stage) -> int:
    """Requests that wait for a reply, at all nodes."""
    return sum(int(node.figures()["pending"]) for node in stage.router.nodes.values())


def sent_while_down(stage: Stage, frame: bytes, turns: int = 5) -> End:
    """A client that has sent this while node A cannot be reached."""
    stage.unreachable.add(A)
    client = stage.client()
    client.send(frame)
    stage.turn(turns)
    return client


def sized(size: int, n: object = "v") -> bytes:
    """A write of about that size."""
    return encode_command("SET", KEY_A, str(n).encode().ljust(size, b"."))


def connecting(stage: Stage) -> Backend:
    """A's connection, under way for as long as the test leaves it so."""
    stage.router.warm(2)
    wanted, stage.wanted = stage.wanted, []
    (backend,) = (backend for backend in wanted if backend.node.address == A)
    return backend


def arrive(stage: Stage, backend: Backend) -> None:
    stage.connect(backend)
    stage.turn()


def pause(stage: Stage, *addresses: object) -> None:
    """PROXY PAUSE holds these nodes, and no others any more."""
    set_paused(stage.path, [stage.router.nodes[address] for address in addresses])  # type: ignore[index]
    stage.turn()
