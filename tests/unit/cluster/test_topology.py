from __future__ import annotations

from typing import ClassVar

import pytest

from proxy.cluster.topology import (
    SLOTS,
    UNKNOWN_EPOCH,
    Address,
    Node,
    Shard,
    SlotMove,
    Topology,
    Verdict,
    accept,
    diff,
    joined_ranges,
    map_address,
)

ASKED = Address("10.0.0.1", 7000)


def node(name: str, role: str = "primary", *, health: str = "online", host: str = "10.0.0.1", epoch: int = 1) -> Node:
    port = 7000 + ord(name)
    return Node(name, Address(host, port), role, health, epoch)  # type: ignore[arg-type]


def topology(*shards: Shard, epoch: int = 5) -> Topology:
    return Topology(shards, epoch, ASKED)


A, B, C = node("a"), node("b"), node("c")
RA, RB = node("x", "replica"), node("y", "replica")
TWO = topology(Shard("1", A, (RA,), ((0, 8191),)), Shard("2", B, (RB,), ((8192, 16383),)))


class TestAddress:
    @pytest.mark.parametrize(
        ("text", "host", "port", "back"),
        [
            ("127.0.0.1:7000", "127.0.0.1", 7000, "127.0.0.1:7000"),
            ("redis-0.example:6379", "redis-0.example", 6379, "redis-0.example:6379"),
            ("[::1]:7000", "::1", 7000, "[::1]:7000"),
            ("::1:7000", "::1", 7000, "[::1]:7000"),
            ("fe80::1%eth0:65535", "fe80::1%eth0", 65535, "[fe80::1%eth0]:65535"),
        ],
    )
    def test_text_both_ways(self, text: str, host: str, port: int, back: str) -> None:
        assert Address.parse(text) == Address(host, port)
        assert str(Address(host, port)) == back
        assert Address.parse(back) == Address(host, port)

    @pytest.mark.parametrize("text", ["", "h", ":7000", "h:", "h:0", "h:65536", "h:-1", "h:\u0663", "[]:1"])
    def test_refuses(self, text: str) -> None:
        with pytest.raises(ValueError, match="is not host:port"):
            Address.parse(text)

    def test_values_do_not_change(self) -> None:
        with pytest.raises(AttributeError):
            ASKED.port = 1  # type: ignore[misc]


class TestMapAddress:
    MAP: ClassVar = {
        "10.0.0.1:7000": "localhost:17000",
        "10.0.0.1": "gateway",
        "::1": "v6.example",
        "[::2]:1": "[::3]:2",
    }

    @pytest.mark.parametrize(
        ("address", "expected"),
        [
            (Address("10.0.0.1", 7000), Address("localhost", 17000)),
            (Address("10.0.0.1", 7001), Address("gateway", 7001)),
            (Address("::1", 5), Address("v6.example", 5)),
            (Address("::2", 1), Address("::3", 2)),
            (Address("10.0.0.2", 7000), Address("10.0.0.2", 7000)),
        ],
    )
    def test_port_before_host(self, address: Address, expected: Address) -> None:
        assert map_address(address, self.MAP) == expected


class TestTopology:
    def test_nodes(self) -> None:
        assert TWO.nodes() == (A, RA, B, RB)
        assert TWO.by_id["y"] is RB

    def test_owner_and_coverage(self) -> None:
        partial = topology(
            Shard("1", A, (), ((5, 5), (100, 200))), Shard("2", B, (), ((6, 99),)), Shard("3", C), Shard("4", None)
        )
        owners = {slot: partial.owner(slot) for slot in (0, 4, 5, 6, 99, 100, 200, 201, 16383)}
        assert {slot: owner.id if owner else None for slot, owner in owners.items()} == {
            0: None,
            4: None,
            5: "1",
            6: "2",
            99: "2",
            100: "1",
            200: "1",
            201: None,
            16383: None,
        }
        assert partial.covered == 196
        assert TWO.covered == SLOTS
        assert topology().covered == 0
        assert topology().owner(0) is None

    def test_a_shard_without_a_primary_covers_nothing(self) -> None:
        headless = topology(Shard("1", None, (RA,), ((0, 100),)))
        assert headless.covered == 0
        assert not headless.settled

    def test_settled(self) -> None:
        assert TWO.settled
        assert not topology(Shard("1", A, (), ((0, 16382),))).settled
        assert not topology(Shard("1", node("a", health="fail"), (), ((0, 16383),))).settled
        # A failed replica or a failed primary without slots is nothing to wait for.
        dead = Shard("2", node("b", health="fail"))
        assert topology(Shard("1", A, (node("x", "replica", health="fail"),), ((0, 16383),)), dead).settled


class TestAccept:
    def test_the_first_answer_is_taken(self) -> None:
        assert accept(None, TWO) is Verdict.ACCEPTED
        assert accept(None, topology()) is Verdict.ACCEPTED

    @pytest.mark.parametrize(
        ("ours", "theirs", "verdict"),
        [
            (5, 6, Verdict.ACCEPTED),
            (5, 5, Verdict.ACCEPTED),
            (5, 4, Verdict.STALE),
            (5, 0, Verdict.STALE),
            (5, UNKNOWN_EPOCH, Verdict.ACCEPTED),
            (UNKNOWN_EPOCH, 0, Verdict.ACCEPTED),
        ],
    )
    def test_newer_epochs_win(self, ours: int, theirs: int, verdict: Verdict) -> None:
        assert accept(topology(*TWO.shards, epoch=ours), topology(*TWO.shards, epoch=theirs)) is verdict

    def test_another_cluster(self) -> None:
        other = topology(Shard("9", C, (), ((0, 16383),)), epoch=99)
        assert accept(TWO, other) is Verdict.OTHER_CLUSTER
        assert accept(TWO, other, current_gone=True) is Verdict.ACCEPTED

    def test_one_node_in_common_is_the_same_cluster(self) -> None:
        assert accept(TWO, topology(Shard("9", C, (RB,), ((0, 16383),)))) is Verdict.ACCEPTED

    def test_a_node_that_was_reset_out_of_the_cluster(self) -> None:
        alone = topology(Shard("1", A))
        assert accept(TWO, alone) is Verdict.EMPTY
        assert accept(TWO, alone, current_gone=True) is Verdict.ACCEPTED
        assert accept(alone, alone) is Verdict.ACCEPTED


class TestDiff:
    def test_from_nothing(self) -> None:
        changes = diff(None, TWO)
        assert changes
        assert changes.added == TWO.nodes()
        assert changes.moved == (SlotMove(0, 8191, None, A), SlotMove(8192, 16383, None, B))
        assert changes.moved_slots == SLOTS

    def test_nothing(self) -> None:
        assert not diff(TWO, TWO)
        assert not diff(TWO, topology(*reversed(TWO.shards), epoch=99))
        assert str(diff(TWO, TWO)) == "nothing"

    def test_slots_that_moved(self) -> None:
        after = topology(
            Shard("1", A, (RA,), ((0, 99), (103, 8191), (9000, 9000))),
            Shard("2", B, (RB,), ((100, 102), (8192, 8999), (9001, 16000))),
        )
        changes = diff(TWO, after)
        assert changes.moved == (
            SlotMove(100, 102, A, B),
            SlotMove(9000, 9000, B, A),
            SlotMove(16001, 16383, B, None),
        )
        assert changes.moved_slots == 3 + 1 + 383
        assert not changes.added
        text = str(changes)
        assert "387 slots moved" in text
        assert f"slots 100-102 from {A.address} to {B.address}" in text
        assert f"slot 9000 from {B.address} to {A.address}" in text
        assert "to nobody" in text

    def test_ranges_split_differently_are_no_move(self) -> None:
        split = topology(
            Shard("1", A, (RA,), ((0, 10), (11, 8191))), Shard("2", B, (RB,), ((8192, 12000), (12001, 16383)))
        )
        assert not diff(TWO, split)
        gone = diff(split, topology(Shard("1", A, (RA,), ((0, 8191),)), Shard("2", B, (RB,))))
        assert gone.moved == (SlotMove(8192, 16383, B, None),)

    def test_failover(self) -> None:
        promoted, demoted = node("y", epoch=7), node("b", "replica", health="fail")
        after = topology(TWO.shards[0], Shard("2", promoted, (demoted,), ((8192, 16383),)))
        changes = diff(TWO, after)
        assert changes.role_changes == ((RB, promoted), (B, demoted))
        assert changes.health_changes == ((B, demoted),)
        assert changes.moved == (SlotMove(8192, 16383, B, promoted),)
        assert f"{promoted.address} is now primary" in str(changes)
        assert f"{demoted.address} is now fail" in str(changes)

    def test_nodes_come_go_and_change_address(self) -> None:
        there = node("a", host="10.0.0.9")
        after = topology(Shard("1", there, (), ((0, 16383),)), Shard("3", C))
        changes = diff(TWO, after)
        assert changes.added == (C,)
        assert changes.removed == (RA, B, RB)
        assert changes.readdressed == ((A, there),)
        assert changes.moved == (SlotMove(8192, 16383, B, there),)
        assert f"{A.address} is now at {there.address}" in str(changes)

    def test_the_description_stays_short(self) -> None:
        many = [Shard(str(n), Node(str(n), Address("h", n + 1), "primary"), (), ((n, n),)) for n in range(0, 2000, 2)]
        text = str(diff(None, topology(*many)))
        assert len(text) < 500
        assert "and 996 more" in text


def test_ranges_are_joined_whatever_was_said() -> None:
    """A broken node said one range 300,000 times, each of which was gone through slot by slot."""
    assert joined_ranges(()) == ()
    assert joined_ranges(((5, 9), (0, 3))) == ((0, 3), (5, 9))
    assert joined_ranges(((0, 16383),) * 10_000) == ((0, 16383),)
    assert joined_ranges(((3, 8), (0, 5), (7, 7), (20, 30))) == ((0, 8), (20, 30))
