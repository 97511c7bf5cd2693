"""What the proxy's processes hold: memory, descriptors, sockets. Called by tests.chaos.stage and the soak."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tests.support.processes import descriptors, memory


@dataclass(frozen=True)
class Footprint:
    """Of all processes together. memory: resident bytes."""

    processes: int
    memory: int
    descriptors: int
    sockets: int

    def __str__(self) -> str:
        return f"{self.memory / 2**20:.0f} MB, {self.descriptors} descriptors, {self.sockets} sockets"


def footprint(pids: Iterable[int]) -> Footprint:
    """Of these processes, now."""
    held = [(memory(pid), descriptors(pid)) for pid in pids]
    leads = [to for _, found in held for to in found]
    return Footprint(
        len(held), sum(size for size, _ in held), len(leads), sum(to.startswith("socket:") for to in leads)
    )
