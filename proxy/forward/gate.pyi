from collections.abc import Iterable

from proxy.forward.client import Client
from proxy.forward.datapath import DataPath
from proxy.forward.node import Node

def set_paused(path: DataPath, nodes: Iterable[Node]) -> None:
    """These nodes of the topology, and no others, are paused from now on; what waits for others goes on.

    Also to be called when the topology has changed: what waits may have another owner.
    """

def suspend(path: DataPath, node: Node, blocked: list[Client]) -> None:
    """Has what blocks at the node ended there, some of it in each turn of the loop."""

def reconnect(path: DataPath, node: Node) -> None:
    """Has the connections made that clients share, where there were some, and those in RESP2."""

def pending(node: Node) -> int:
    """Commands that were sent to the node, or are about to be, and are not answered."""

def held(path: DataPath) -> int:
    """Clients whose next command is for a paused node."""

def go_on(path: DataPath, blocked: list[Client], begun: list[Client], gated: list[Client], until_ns: int) -> None:
    """Each of these clients looks where it would go now, some in each turn of the loop, the last one first.

    Those that are blocked go first: what was held came behind them, and XREAD with $ is not to miss it. begun: of them,
    who have looked. until_ns: how long the others wait for theirs to be sent (CLOCK_MONOTONIC).
    """
