"""Which node of the published topology a redirection names; called by worker.worker.

Why: servers name nodes by ip, hostname or not at all (cluster-preferred-endpoint-type), with the ports they announce,
none of which need be what is dialled. Never a node that was not published: a redirection may be a client's invention.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.cluster.topology import Address
from proxy.ipc.messages import Topology


class NodeNames:
    """addresses: of topology.nodes, in their order."""

    def __init__(self, topology: Topology, addresses: Sequence[Address]) -> None:
        self._names = topology.names
        self._addresses = addresses
        self._nodes = dict(zip(addresses, topology.nodes, strict=True))

    def find(self, host: str, port: int, asked: Address) -> Address | None:
        """The node that `asked` named in a redirection; None = none of the topology.

        An empty host is one it does not know: its own (cluster-preferred-endpoint-type unknown-endpoint), or that of a
        node without a hostname where these are preferred. Never `asked` itself then: nobody redirects to itself.
        """
        if host:
            return self._named(host, port)
        hosts = self._nodes[asked].hosts if asked in self._nodes else ()
        for own in (*hosts, asked.host):
            if (found := self._named(own, port)) not in (None, asked):
                return found
        others = [at for at, node in self._nodes.items() if node.announced_port == port and at != asked]
        return others[0] if len(others) == 1 else None

    def _named(self, host: str, port: int) -> Address | None:
        place = self._names.get(str(Address(host, port)))
        return None if place is None else self._addresses[place]
