"""What a redirection says, and whom it means."""

from __future__ import annotations

from proxy.cluster.node_names import NodeNames
from proxy.cluster.topology import Address

A, B, C = (Address("127.0.0.1", port) for port in (1, 2, 3))
SIX = Address("::1", 4)


def names(*nodes: tuple[Address, int, tuple[str, ...]]) -> NodeNames:
    """With the names a publisher would give: the address dialled, and every announced host with the announced port."""
    known = {str(address): place for place, (address, _, _) in enumerate(nodes)}
    known |= {str(Address(host, port)): place for place, (_, port, hosts) in enumerate(nodes) for host in hosts}
    return NodeNames(known, nodes)


def test_by_every_name() -> None:
    """Ports are mapped: a redirection has the announced one, with whatever host."""
    found = names((A, 7001, ("10.0.0.1", "a.example")), (B, 7002, ("10.0.0.2",)), (SIX, 7003, ("fe80::1",)))
    for host, port, whom in (
        ("10.0.0.2", 7002, B),
        ("127.0.0.1", 2, B),
        ("a.example", 7001, A),
        ("::1", 4, SIX),
        ("fe80::1", 7003, SIX),
    ):
        assert found.find(host, port, A) == whom
    assert found.find("10.0.0.2", 7001, A) is None
    assert found.find("elsewhere", 7002, A) is None


def test_an_empty_host_is_that_of_whoever_says_it() -> None:
    found = names((A, 7001, ("10.0.0.1",)), (B, 7002, ("10.0.0.1",)), (C, 7002, ("10.0.0.9",)))
    assert found.find("", 7002, A) == B
    assert found.find("", 2, A) == B  # the host it is dialled at


def test_an_empty_host_is_never_the_asked_node_itself() -> None:
    """Each machine has one node, all at the same port: only one other could be meant, or nobody knows who is."""
    here, there, third = (Address(f"10.0.0.{n}", 7000) for n in (1, 2, 3))
    assert names((here, 7000, ()), (there, 7000, ())).find("", 7000, here) == there
    assert names((here, 7000, ()), (there, 7000, ()), (third, 7000, ())).find("", 7000, here) is None


def test_by_one_that_has_left() -> None:
    found = names((A, 7001, ()), (B, 7002, ()))
    assert found.find("", 2, Address("127.0.0.1", 99)) == B
    assert found.find("", 7002, Address("10.9.9.9", 99)) == B
    assert found.find("", 7003, A) is None
