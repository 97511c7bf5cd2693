"""Which node of the published topology a redirection names; called by worker.worker.

Why: servers name nodes by ip, hostname or not at all (cluster-preferred-endpoint-type), with the ports they announce,
none of which need be what is dialled. Never a node that was not published: a redirection may be a client's invention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from proxy.cluster.topology import Address


class NodeNames:
    """names: "host:port" as a redirection may say it -> index into nodes.

    nodes: (address to dial, port it is announced with, hosts other nodes may name it by) each.
    """

    def __init__(self, names: Mapping[str, int], nodes: Sequence[tuple[Address, int, Sequence[str]]]) -> None:
        self._names = names
        self._nodes = nodes

    @cached_property
    def _hosts(self) -> dict[Address, Sequence[str]]:
        """Not needed before somebody leaves out a host."""
        return {address: hosts for address, _, hosts in self._nodes}

    def find(self, host: str, port: int, asked: Address) -> Address | None:
        """The node that `asked` named in a redirection; None = none of the topology.

        An empty host is one it does not know: its own (cluster-preferred-endpoint-type unknown-endpoint), or that of a
        node without a hostname where these are preferred. Never `asked` itself then: nobody redirects to itself.
        """
        if host:
            return self._named(host, port)
        for own in (*self._hosts.get(asked, ()), asked.host):
            if (found := self._named(own, port)) not in (None, asked):
                return found
        others = [address for address, announced, _ in self._nodes if announced == port and address != asked]
        return others[0] if len(others) == 1 else None

    def _named(self, host: str, port: int) -> Address | None:
        place = self._names.get(str(Address(host, port)))
        return None if place is None else self._nodes[place][0]
