"""A topology as the workers are given it.

Why: whatever has to be built, compared or looked up for a topology is done once, here, in the main process, so that a
worker only copies: 300 nodes and a fully fragmented slot table must not hold its clients up. Called by control_plane.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator, Mapping

from proxy.cluster.topology import SLOTS, Address, Node, Topology, map_address
from proxy.ipc import messages

NOBODY = 0xFFFF
_EPOCH_MAX = 2**63 - 1  # a node may say more, but a message cannot


def publication(
    topology: Topology,
    address_map: Mapping[str, str],
    usable: Callable[[Address], bool],
    stale: Callable[[Address], bool] = lambda address: False,
) -> messages.Topology:
    """The message for the workers. usable: whether the replica at an address may be read from; stale: whether it may
    not only because it has lost touch with its primary.
    """
    nodes = list({node.address: node for node in topology.nodes()}.values())
    places = {node.address: place for place, node in enumerate(nodes)}
    owners = array("H", [NOBODY]) * SLOTS
    for number, shard in enumerate(topology.shards[:NOBODY]):
        for first, last in shard.slots:
            owners[first : last + 1] = array("H", [number]) * (last - first + 1)
    if sys.byteorder != "little":
        owners.byteswap()
    return messages.Topology(
        nodes=[
            messages.NodeEntry(
                host=node.address.host,
                port=node.address.port,
                replica=node.role == "replica",
                usable=node.role == "primary" or usable(node.address),
                announced_port=node.announced_port,
                hosts=(*node.announced_hosts, node.address.host),
                failing=node.health == "fail",
                stale=node.role == "replica" and stale(node.address),
                id=node.id,
            )
            for node in nodes
        ],
        shards=[
            (
                places[shard.primary.address] if shard.primary is not None else -1,
                tuple(places[replica.address] for replica in shard.replicas),
            )
            for shard in topology.shards
        ],
        owners=owners.tobytes(),
        names=names(nodes, address_map),
        epoch=min(topology.epoch, _EPOCH_MAX),
        covered=topology.covered,
    )


def names(nodes: list[Node], address_map: Mapping[str, str]) -> dict[str, int]:
    """Every "host:port" by which a redirection may name one of these nodes -> its place among them.

    That depends on the servers' preferred endpoint, which need not be the one in use here (`cluster.endpoint`), and
    they name the port they announce, not the one it is mapped to.
    """
    found: dict[str, int] = {}
    # In this order: where ports are mapped crosswise, one node's name is the place where another one is dialled.
    for place, node in enumerate(nodes):
        for told in _told(node):
            found.setdefault(str(told), place)
    for place, node in enumerate(nodes):
        found.setdefault(str(node.address), place)
    for place, node in enumerate(nodes):
        for told in _told(node):
            found.setdefault(str(map_address(told, address_map)), place)
    # A name that no node was announced by, but that is mapped to where one of them is dialled.
    by_address = {str(node.address): place for place, node in enumerate(nodes)}
    by_host: dict[str, list[int]] = {}
    for place, node in enumerate(nodes):
        by_host.setdefault(node.address.host, []).append(place)
    for announced, reached in address_map.items():
        if reached in by_address:
            found.setdefault(announced, by_address[reached])
        for place in by_host.get(reached, ()):
            found.setdefault(str(Address(announced, nodes[place].address.port)), place)
    return found


def _told(node: Node) -> Iterator[Address]:
    """What a node is announced as."""
    return (Address(host, node.announced_port) for host in node.announced_hosts)
