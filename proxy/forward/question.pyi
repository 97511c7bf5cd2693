from collections.abc import Callable

from proxy.forward.exchange import Exchange
from proxy.forward.node import Node

def ask_node(
    exchange: Exchange,
    node: Node,
    frame: bytes,
    *,
    proto: int,
    timeout_ns: int,
    most: int,
    done: Callable[[bytes | None], object],
    raised: Callable[[str, BaseException], object],
    through: bool = False,
) -> None:
    """Sends a command that only reads to a node, among its clients' commands.

    done: called once with the reply, an error line included, also one of ours when the node does not answer; or with
    None when it is longer than `most` bytes. At the latest a sweep after timeout_ns; perhaps before this returns.
    raised: done has raised. through: to a paused node, too; else that one does not answer. Raises MemoryError.
    """
