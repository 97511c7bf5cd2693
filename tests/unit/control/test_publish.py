"""Topologies as the workers are given them, and the names by which redirections may call their nodes."""

from __future__ import annotations

import random
import sys
import time
from itertools import pairwise
from typing import Any

import pytest

from proxy.cluster.topology import SLOTS, UNKNOWN_EPOCH, Address, Node, Shard, Topology
from proxy.control import publish
from proxy.control.publish import NOBODY, publication
from proxy.ipc.channel import encode
from proxy.ipc.messages import TO_WORKER, NodeEntry
from proxy.ipc.messages import Topology as Published

ASKED = Address("10.0.0.1", 7000)


def node(number: int, role: Any = "primary", *, address: Address | None = None, **more: Any) -> Node:
    address = address or Address(f"10.0.{number // 250}.{number % 250}", 7000)
    return Node(f"id-{number}-{role}", address, role, ip=address.host, port=address.port, **more)


def published(*shards: Shard, epoch: int = 5, unfit: tuple[Address, ...] = (), **address_map: str) -> Published:
    """As a worker decodes it."""
    made = publication(Topology(shards, epoch, ASKED), address_map, lambda address: address not in unfit)
    decoded = TO_WORKER.decode(encode(made))
    assert isinstance(decoded, Published)
    return decoded


def owners(told: Published) -> list[int]:
    return list(memoryview(told.owners).cast("H")) if len(told.owners) == 2 * SLOTS else []


def slow_owners(shards: tuple[Shard, ...]) -> list[int]:
    """Slot by slot, as the specification says it."""
    topology = Topology(shards, 1, ASKED)
    return [NOBODY if (shard := topology.owner(slot)) is None else shards.index(shard) for slot in range(SLOTS)]


def scattered(shards: int, ranges: int, seed: int = 1) -> tuple[Shard, ...]:
    """So many slot ranges, dealt out at random; some slots are nobody's."""
    rng = random.Random(seed)
    edges = [0, *sorted(rng.sample(range(1, SLOTS), ranges - 1)), SLOTS]
    slots: list[list[tuple[int, int]]] = [[] for _ in range(shards)]
    for first, end in pairwise(edges):
        if rng.random() < 0.98:
            rng.choice(slots).append((first, end - 1))
    return tuple(Shard(str(n), node(2 * n), (node(2 * n + 1, "replica"),), tuple(held)) for n, held in enumerate(slots))


def test_a_small_cluster() -> None:
    first = Shard("a", node(1), (node(2, "replica"), node(3, "replica")), ((0, 99), (200, 16383)))
    second = Shard("b", node(4), (), ((100, 198),))
    told = published(first, second, unfit=(node(3).address, node(4).address))
    assert [(entry.host, entry.port, entry.replica, entry.usable) for entry in told.nodes] == [
        ("10.0.0.1", 7000, False, True),
        ("10.0.0.2", 7000, True, True),
        ("10.0.0.3", 7000, True, False),
        ("10.0.0.4", 7000, False, True),  # a primary is not judged
    ]
    assert told.shards == [(0, (1, 2)), (3, ())]
    assert owners(told) == [0] * 100 + [1] * 99 + [NOBODY] + [0] * (SLOTS - 200)
    assert (told.epoch, told.covered) == (5, SLOTS - 1)


@pytest.mark.parametrize(("shards", "ranges"), [(1, 1), (3, 3), (150, 1600), (150, SLOTS)])
def test_owners_are_those_of_a_slow_model(shards: int, ranges: int) -> None:
    """Up to 300 nodes with 1,600 slot ranges, and a fully fragmented table."""
    made = scattered(shards, ranges)
    began_s = time.thread_time()
    told = published(*made)
    taken_s = time.thread_time() - began_s
    assert owners(told) == slow_owners(made)
    assert told.covered == sum(owner != NOBODY for owner in owners(told))
    assert len(told.nodes) == 2 * shards
    assert taken_s < 1.0  # tens of milliseconds: the main process has one loop, too


def test_little_endian_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Shard("a", node(1), (), ((1, 16383),)), Shard("b", node(2), (), ((0, 0),))
    assert published(one, two).owners[:4] == b"\x01\x00\x00\x00"
    monkeypatch.setattr(sys, "byteorder", "big")
    assert published(one, two).owners[:4] == b"\x00\x01\x00\x00"  # this machine's order, turned round


def test_a_shard_without_a_primary() -> None:
    """Its slots are its own, for it may get one; its replicas are known."""
    told = published(
        Shard("a", None, (node(1, "replica"),), ((0, 9),)), Shard("b", node(2), (), ((10, 16383),)), Shard("c", node(3))
    )
    assert told.shards == [(-1, (0,)), (1, ()), (2, ())]
    assert owners(told) == [0] * 10 + [1] * (SLOTS - 10)
    assert told.covered == SLOTS - 10


def test_two_nodes_of_one_address() -> None:
    """Two owners of slots that say they are at one place: one node, which gets the commands of both."""
    one = Shard("a", Node("x", ASKED, "primary", ip="10.0.0.1", port=7000), (), ((0, 99),))
    two = Shard("b", Node("y", ASKED, "primary", ip="10.0.0.1", hostname="h", port=7000), (), ((100, 16383),))
    told = published(one, two)
    assert [(entry.host, entry.port) for entry in told.nodes] == [("10.0.0.1", 7000)]
    assert told.shards == [(0, ()), (0, ())]
    assert told.names == {"10.0.0.1:7000": 0, "h:7000": 0}


def test_ipv6() -> None:
    told = published(Shard("a", node(1, address=Address("fe80::1", 7000)), (), ((0, 16383),)))
    assert told.nodes == [NodeEntry("fe80::1", 7000, False, True, 7000, ("fe80::1", "fe80::1"), id="id-1-primary")]
    assert told.names == {"[fe80::1]:7000": 0}


def test_how_other_nodes_may_name_one() -> None:
    one = Node("x", Address("front", 17000), "primary", ip="10.0.0.1", hostname="one", endpoint="lb", port=7000)
    (entry,) = published(Shard("a", one)).nodes
    assert (entry.announced_port, entry.hosts) == (7000, ("lb", "10.0.0.1", "one", "front"))


@pytest.mark.parametrize(("epoch", "expected"), [(UNKNOWN_EPOCH, -1), (10**20 - 1, 2**63 - 1)])
def test_an_epoch_that_no_message_could_carry(epoch: int, expected: int) -> None:
    """Up to 20 digits are read of a node's answer."""
    assert published(Shard("a", node(1)), epoch=epoch).epoch == expected


def test_nothing() -> None:
    told = published()
    assert (told.nodes, told.shards, told.names, told.covered) == ([], [], {}, 0)
    assert set(owners(told)) == {NOBODY}


# -- names ---------------------------------------------------------------------------------------------------------


def named(number: int, *, ip: str = "", hostname: str = "", endpoint: str = "", port: int = 0, at: str = "") -> Node:
    """Node `number`, dialled at `at`, else at its ip."""
    address = Address.parse(at) if at else Address(ip, port)
    return Node(str(number), address, "primary", ip=ip, hostname=hostname, endpoint=endpoint, port=port)


def names(*nodes: Node, address_map: dict[str, str] | None = None) -> dict[str, int]:
    return publish.names(list(nodes), address_map or {})


def test_by_address_ip_hostname_and_endpoint() -> None:
    found = names(named(1, ip="10.0.0.1", hostname="one", endpoint="lb", port=7000, at="front:17000"))
    assert found == {"front:17000": 0, "10.0.0.1:7000": 0, "one:7000": 0, "lb:7000": 0}


def test_without_an_announced_port_it_is_that_of_the_address() -> None:
    assert names(named(1, hostname="one", at="front:17000")) == {"one:17000": 0, "front:17000": 0}


def test_ports_mapped_for_another_name_than_the_redirections_use() -> None:
    """The map knows the ip, which is dialled; the servers redirect to hostnames, with the port they announce."""
    address_map = {f"127.0.0.1:700{n}": f"127.0.0.1:1700{n}" for n in (1, 2)}
    one, two = (named(n, ip="127.0.0.1", hostname="h", port=7000 + n, at=f"127.0.0.1:1700{n}") for n in (1, 2))
    found = names(one, two, address_map=address_map)
    for host in ("h", "127.0.0.1"):
        assert (found[f"{host}:7001"], found[f"{host}:7002"]) == (0, 1)


def test_mapped_crosswise() -> None:
    """Where one is dialled is what the other one is called: a redirection says what it is called."""
    address_map = {"h:1": "h:2", "h:2": "h:1"}
    one, two = (named(n, ip="h", port=n, at=address_map[f"h:{n}"]) for n in (1, 2))
    assert names(one, two, address_map=address_map) == {"h:1": 0, "h:2": 1}


def test_a_name_that_only_the_map_knows() -> None:
    one = named(1, ip="10.0.0.1", port=7000, at="gate:7000")
    found = names(one, address_map={"10.0.0.1": "gate", "inside": "gate", "other:1": "gate:7000", "x": "elsewhere"})
    assert found == {"10.0.0.1:7000": 0, "gate:7000": 0, "inside:7000": 0, "other:1": 0}


def test_several_nodes_behind_one_mapped_host() -> None:
    one, two = (named(n, ip="10.0.0.1", port=n, at=f"gate:{n}") for n in (1, 2))
    found = names(one, two, address_map={"inside": "gate"})
    assert (found["inside:1"], found["inside:2"]) == (0, 1)


def test_ipv6_names() -> None:
    one = named(1, ip="::1", port=7000, at="[::2]:7000")
    assert names(one, address_map={"::1": "::2", "::9": "::2"}) == {
        "[::1]:7000": 0,
        "[::2]:7000": 0,
        "[::9]:7000": 0,
    }


def test_300_nodes_that_are_all_mapped() -> None:
    """The map is not gone through once for every node."""
    nodes = [named(n, ip=f"10.0.0.{n}", port=7000, at=f"gate:{17000 + n}") for n in range(300)]
    address_map = {f"10.0.0.{n}:7000": f"gate:{17000 + n}" for n in range(300)} | {f"h{n}": "gate" for n in range(20)}
    began_s = time.thread_time()
    found = names(*nodes, address_map=address_map)
    assert time.thread_time() - began_s < 0.5
    assert found["10.0.0.299:7000"] == found["gate:17299"] == found["h19:17299"] == 299


def test_who_failed_and_who_is_stale() -> None:
    shard = Shard("a", node(1, health="fail"), (node(2, "replica"), node(3, "replica", health="fail")), ((0, 16383),))
    lost_touch = {node(1).address, node(2).address}
    made = publication(Topology((shard,), 5, ASKED), {}, lambda _: False, lambda address: address in lost_touch)
    told = TO_WORKER.decode(encode(made))
    assert isinstance(told, Published)
    assert [(entry.failing, entry.stale) for entry in told.nodes] == [(True, False), (False, True), (True, False)]
