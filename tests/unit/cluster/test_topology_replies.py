"""Replies under data/ were recorded from real clusters of 3 primaries and 3 replicas, asked at their first node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proxy.cluster.topology import SLOTS, UNKNOWN_EPOCH, Address, Topology, TopologyError
from proxy.cluster.topology_replies import (
    AddressRules,
    build,
    parse_info,
    parse_nodes,
    parse_shards,
    parse_slots,
)

ASKED = Address("asked.example", 6379)
SERVERS = ["valkey-9.1", "redis-7.0"]
ID = "{:040x}".format


def recorded(server: str, scene: str) -> dict[str, Any]:
    text = (Path(__file__).parent / "data" / f"{server}.json").read_text()
    replies: dict[str, Any] = json.loads(text)[scene]
    return replies


def as_bytes(value: Any) -> Any:
    """Bulk strings as the wire decoder gives them."""
    if isinstance(value, str):
        return value.encode()
    return [as_bytes(item) for item in value] if isinstance(value, list) else value


def from_shards(replies: dict[str, Any], rules: AddressRules | None = None) -> Topology:
    replies = {name: as_bytes(reply) for name, reply in replies.items()}
    rules = rules or AddressRules()
    return build(ASKED, rules, shards=replies["SHARDS"], nodes=replies["NODES"], info=replies["INFO"])


def from_slots(replies: dict[str, Any], rules: AddressRules | None = None) -> Topology:
    rules = rules or AddressRules()
    return build(ASKED, rules, slots=replies["SLOTS"], nodes=replies["NODES"], info=replies["INFO"])


def hosts(topology: Topology) -> set[str]:
    return {node.address.host for node in topology.nodes()}


def owners(topology: Topology) -> dict[int, str]:
    """First slot -> id of its primary."""
    return {first: shard.primary.id for first, _, shard in topology.ranges if shard.primary is not None}


@pytest.mark.parametrize("server", SERVERS)
class TestRecorded:
    @pytest.mark.parametrize("scene", ["plain", "hostnames-known", "migrating"])
    def test_shards_and_slots_tell_the_same(self, server: str, scene: str) -> None:
        replies = recorded(server, scene)
        shards, slots = from_shards(replies), from_slots(replies)
        for topology in (shards, slots):
            assert topology.epoch == 6
            assert topology.covered == SLOTS
            assert topology.asked == ASKED
            assert hosts(topology) == {"127.0.0.1"}
            assert [(shard.slots, len(shard.replicas)) for shard in topology.shards] == [
                (((0, 5460),), 1),
                (((5461, 10921),), 1),
                (((10922, 16383),), 1),
            ]
            assert [shard.primary.epoch for shard in topology.shards if shard.primary] == [1, 2, 3]
        assert {(n.id, n.address, n.role) for n in shards.nodes()} == {(n.id, n.address, n.role) for n in slots.nodes()}
        assert {node.hostname != "" for node in shards.nodes()} == {scene == "hostnames-known"}
        assert {node.ip for node in shards.nodes()} == {"127.0.0.1"}

    @pytest.mark.parametrize("read", [from_shards, from_slots])
    def test_preferred_host_names(self, server: str, read: Any) -> None:
        replies = recorded(server, "prefer-hostname")
        announced = read(replies)
        assert hosts(announced) == {f"node-{node.address.port}.example" for node in announced.nodes()}
        assert hosts(read(replies, AddressRules("hostname"))) == hosts(announced)
        assert hosts(read(replies, AddressRules("ip"))) == {"127.0.0.1"}

    @pytest.mark.parametrize("read", [from_shards, from_slots])
    def test_host_names_by_choice(self, server: str, read: Any) -> None:
        topology = read(recorded(server, "hostnames-known"), AddressRules("hostname"))
        assert hosts(topology) == {f"node-{node.address.port}.example" for node in topology.nodes()}

    @pytest.mark.parametrize("read", [from_shards, from_slots])
    def test_a_missing_host_name_falls_back_to_the_ip(self, server: str, read: Any) -> None:
        topology = read(recorded(server, "prefer-hostname-one-missing"))
        by_ip = [node for node in topology.nodes() if node.address.host == "127.0.0.1"]
        assert [node.id for node in by_ip] == [owners(topology)[5461]]
        assert by_ip[0].hostname == ""

    @pytest.mark.parametrize("read", [from_shards, from_slots])
    def test_unknown_endpoints_are_at_the_host_asked(self, server: str, read: Any) -> None:
        replies = recorded(server, "unknown-endpoint")
        topology = read(replies)
        assert hosts(topology) == {"asked.example"}
        assert len({node.address.port for node in topology.nodes()}) == 6
        assert hosts(read(replies, AddressRules("ip"))) == {"127.0.0.1"}

    @pytest.mark.parametrize("read", [from_shards, from_slots])
    def test_a_node_that_does_not_know_its_own_ip(self, server: str, read: Any) -> None:
        for rules in (AddressRules(), AddressRules("ip"), AddressRules("hostname")):
            topology = read(recorded(server, "single"), rules)
            assert hosts(topology) == {"asked.example"}
            assert topology.covered == SLOTS
            assert [node.health for node in topology.nodes()] == ["online"]

    @pytest.mark.parametrize("read", [from_shards, from_slots])
    def test_a_failed_primary_is_a_known_node_without_slots(self, server: str, read: Any) -> None:
        """Valkey leaves it in its shard beside its successor, Redis 7.0 in one of its own."""
        topology = read(recorded(server, "after-failover"))
        assert topology.epoch == 7
        assert topology.covered == SLOTS
        *serving, dead = topology.shards
        assert [shard.slots[0][0] for shard in serving] == [0, 5461, 10922]
        assert serving[2].primary is not None
        assert (serving[2].primary.epoch, serving[2].primary.health, serving[2].replicas) == (7, "online", ())
        assert dead.primary is not None
        assert (dead.slots, dead.primary.health, dead.primary.epoch, dead.replicas) == ((), "fail", 3, ())
        assert topology.settled

    @pytest.mark.parametrize("read", [from_shards, from_slots])
    def test_a_lost_shard_keeps_its_slots(self, server: str, read: Any) -> None:
        topology = read(recorded(server, "shard-lost"))
        assert topology.covered == SLOTS
        assert not topology.settled
        lost = topology.owner(16000)
        assert lost is not None
        assert lost.primary is not None
        assert (lost.primary.health, lost.primary.epoch) == ("fail", 7)

    def test_without_nodes_and_info(self, server: str) -> None:
        """An ACL may leave only what a cluster client needs."""
        refused = RuntimeError("NOPERM this user has no permissions to run the 'cluster|nodes' command")
        for scene in ("plain", "after-failover"):
            replies = recorded(server, scene)
            topology = build(ASKED, AddressRules(), shards=replies["SHARDS"], nodes=refused, info=refused)
            assert topology.epoch == UNKNOWN_EPOCH
            assert owners(topology) == owners(from_shards(replies))


class TestValkey:
    def test_shard_ids_last_through_a_failover(self) -> None:
        before = from_shards(recorded("valkey-9.1", "migrating"))
        after = from_shards(recorded("valkey-9.1", "after-failover"))
        assert [shard.id for shard in before.shards] == [shard.id for shard in after.shards[:3]]
        assert owners(before)[10922] != owners(after)[10922]

    def test_zones(self) -> None:
        replies = recorded("valkey-9.1", "migrating")
        assert {node.zone for node in from_shards(replies).nodes()} == {"zone-a"}
        assert {entry.zone for shard in parse_slots(replies["SLOTS"]) for entry in shard.nodes} == {"zone-a"}


class TestRedis70:
    def test_replicas_of_idle_shards_are_called_loading(self) -> None:
        """Their replication offset is 0, so SLOTS leaves them out: NODES has them."""
        replies = recorded("redis-7.0", "plain")
        assert {n.health for n in from_shards(replies).nodes() if n.role == "replica"} == {"loading"}
        assert all(len(row) == 3 for row in replies["SLOTS"])
        assert sum(len(shard.replicas) for shard in from_slots(replies).shards) == 3

    def test_the_shard_is_called_by_its_primary(self) -> None:
        topology = from_shards(recorded("redis-7.0", "plain"))
        assert {shard.id for shard in topology.shards} == set(owners(topology).values())


def shard_node(n: int, role: str = "master", /, **more: Any) -> list[Any]:
    fields = {"id": ID(n), "port": 7000 + n, "ip": f"10.0.0.{n}", "endpoint": f"10.0.0.{n}", "role": role} | more
    return [item for pair in fields.items() if pair[1] is not ... for item in pair]


TLS: dict[str, Any] = {"tls-port": 8001}


def shard(slots: list[Any], *nodes: list[Any], **more: Any) -> list[Any]:
    return ["slots", slots, "nodes", list(nodes), *(item for pair in more.items() for item in pair)]


def line(n: int, flags: str, epoch: int = 1, *slots: str, of: int | None = None, at: str = "") -> str:
    at = at or f"10.0.0.{n}:{7000 + n}@{17000 + n}"
    return " ".join([ID(n), at, flags, "-" if of is None else ID(of), "0", "0", str(epoch), "connected", *slots])


def read(shards: Any, *lines: str, rules: AddressRules | None = None) -> Topology:
    return build(ASKED, rules or AddressRules(), shards=shards, nodes="\n".join(lines) if lines else None)


def only(topology: Topology) -> Address:
    (node,) = topology.nodes()
    return node.address


class TestAddresses:
    @pytest.mark.parametrize(
        ("endpoint", "ip", "hostname", "announced", "by_ip", "by_name"),
        [
            ("10.0.0.1", "10.0.0.1", ..., "10.0.0.1", "10.0.0.1", "10.0.0.1"),
            ("10.0.0.1", ..., ..., "10.0.0.1", "10.0.0.1", "10.0.0.1"),
            ("n1.example", ..., ..., "n1.example", "asked.example", "n1.example"),
            ("10.0.0.1", "10.0.0.1", "n1.example", "10.0.0.1", "10.0.0.1", "n1.example"),
            ("n1.example", "10.0.0.1", "n1.example", "n1.example", "10.0.0.1", "n1.example"),
            (None, "10.0.0.1", "n1.example", "asked.example", "10.0.0.1", "n1.example"),
            ("", "10.0.0.1", ..., "asked.example", "10.0.0.1", "10.0.0.1"),
            ("?", "10.0.0.1", ..., "10.0.0.1", "10.0.0.1", "10.0.0.1"),
            ("?", "?", "?", "asked.example", "asked.example", "asked.example"),
            ("?", "", ..., "asked.example", "asked.example", "asked.example"),
            ("::1", "::1", ..., "::1", "::1", "::1"),
            (..., ..., ..., "asked.example", "asked.example", "asked.example"),
        ],
    )
    def test_choice(self, endpoint: Any, ip: Any, hostname: Any, announced: str, by_ip: str, by_name: str) -> None:
        reply = [shard([0, 1], shard_node(1, endpoint=endpoint, ip=ip, hostname=hostname))]
        assert only(read(reply)) == Address(announced, 7001)
        assert only(read(reply, rules=AddressRules("ip"))) == Address(by_ip, 7001)
        assert only(read(reply, rules=AddressRules("hostname"))) == Address(by_name, 7001)

    def test_address_map(self) -> None:
        rules = AddressRules(address_map={"10.0.0.1:7001": "localhost:17001", "10.0.0.2": "gateway"})
        topology = read([shard([0, 1], shard_node(1), shard_node(2, "replica"), shard_node(3, "replica"))], rules=rules)
        assert [str(node.address) for node in topology.nodes()] == ["localhost:17001", "gateway:7002", "10.0.0.3:7003"]

    def test_what_is_announced_is_kept(self) -> None:
        told = [
            shard_node(1, hostname="h"),
            shard_node(2, "replica", endpoint="?"),
            shard_node(3, "replica", endpoint="lb"),
        ]
        nodes = read([shard([0, 1], *told)], rules=AddressRules(address_map={"lb:7003": "gate:1"})).nodes()
        assert [(one.endpoint, one.port) for one in nodes] == [("10.0.0.1", 7001), ("", 7002), ("lb", 7003)]
        assert [one.announced_hosts for one in nodes][1:] == [("10.0.0.2",), ("lb", "10.0.0.3", "lb")]

    def test_the_host_asked_is_mapped_only_with_its_port(self) -> None:
        """It was reached as it is; but several forwarded ports may hide behind it."""
        reply = [shard([0, 1], shard_node(1, endpoint=None), shard_node(2, "replica", endpoint=None))]
        rules = AddressRules(address_map={"asked.example": "wrong", "asked.example:7002": "asked.example:17002"})
        topology = read(reply, rules=rules)
        assert [str(node.address) for node in topology.nodes()] == ["asked.example:7001", "asked.example:17002"]

    def test_tls_port_only_where_there_is_no_other(self) -> None:
        both = shard_node(1, **TLS)
        assert only(read([shard([0, 1], both)])).port == 7001
        assert only(read([shard([0, 1], shard_node(1, port=..., **TLS))])).port == 8001

    def test_ipv6_in_nodes_and_slots(self) -> None:
        topology = build(
            ASKED,
            AddressRules(),
            slots=[[0, 16383, ["::1", 7001, ID(1), []]]],
            nodes=f"{line(1, 'myself,master', 1, '0-16383', at='::1:7001@17001')}\n"
            f"{line(2, 'slave', of=1, at='fe80::2:7002@17002')}",
        )
        assert [str(node.address) for node in topology.nodes()] == ["[::1]:7001", "[fe80::2]:7002"]


class TestShards:
    def test_a_map_reply_and_slots_as_text(self) -> None:
        """RESP3 maps; Redis 7.0.0 and 7.2.0 sent the slots as strings (redis/redis#10680, #12561)."""
        reply = [
            {b"slots": [b"0", b"100"], b"nodes": [{b"id": b"a", b"port": 1, b"endpoint": b"h", b"role": b"master"}]}
        ]
        topology = read(reply)
        assert topology.covered == 101
        assert only(topology) == Address("h", 1)

    def test_what_is_not_known_is_passed_over(self) -> None:
        topology = read([shard([0, 1], shard_node(1, health="dreaming", colour="red", x=[1, [2]]), weather=None)])
        assert [node.health for node in topology.nodes()] == ["online"]

    @pytest.mark.parametrize(
        ("told", "flags", "health"),
        [
            ("online", "slave", "online"),
            ("online", "slave,fail?", "online"),
            ("online", "slave,fail", "fail"),
            ("online", "slave,noaddr", "fail"),
            ("online", "slave,nofailover", "online"),
            ("loading", "slave", "loading"),
            ("fail", "slave", "fail"),
        ],
    )
    def test_health_of_a_replica(self, told: str, flags: str, health: str) -> None:
        reply = [shard([0, 1], shard_node(1), shard_node(2, "replica", health=told))]
        topology = read(reply, line(1, "myself,master", 1, "0-1"), line(2, flags, of=1))
        assert topology.by_id[ID(2)].health == health
        assert topology.shards[0].replicas == (topology.by_id[ID(2)],)

    def test_primaries_without_slots_are_known(self) -> None:
        topology = read([shard([], shard_node(2)), shard([0, 16383], shard_node(1))])
        assert [shard.slots for shard in topology.shards] == [((0, 16383),), ()]
        assert len(topology.nodes()) == 2

    def test_nodes_being_met_and_nodes_without_address_are_no_nodes_yet(self) -> None:
        reply = [shard([0, 1], shard_node(1), shard_node(3, "replica", port=0)), shard([], shard_node(2))]
        topology = read(reply, line(1, "myself,master", 1, "0-1"), line(2, "handshake", 0))
        assert [node.id for node in topology.nodes()] == [ID(1)]

    def test_slots_missing_from_shards_are_in_nodes(self) -> None:
        """redis/redis#13414: an empty shard, its slots hidden by the failed primary that is named first."""
        reply = [shard([], shard_node(1, health="fail"), shard_node(2)), shard([0, 99], shard_node(3))]
        topology = read(
            reply,
            line(1, "master,fail", 1),
            line(2, "master", 9, "100-200", "300"),
            line(3, "myself,master", 2, "0-99"),
        )
        assert topology.owner(300) == topology.owner(100)
        assert owners(topology) == {0: ID(3), 100: ID(2), 300: ID(2)}
        assert topology.by_id[ID(1)].health == "fail"

    def test_of_two_primaries_in_a_shard_the_one_with_the_slots_counts(self) -> None:
        reply = [shard([0, 99], shard_node(1), shard_node(2, health="fail"))]
        topology = read(reply, line(1, "master", 9), line(2, "master,fail", 2, "0-99"))
        assert owners(topology) == {0: ID(2)}
        assert [shard.slots for shard in topology.shards] == [((0, 99),), ()]

    def test_repeated_ranges_of_one_shard(self) -> None:
        """redis/redis#12832: mixed 7.0 and 7.2 clusters."""
        topology = read([shard([0, 50, 0, 50, 0, 50], shard_node(1))])
        assert topology.shards[0].slots == ((0, 50),)

    def test_a_node_that_came_back_under_a_new_id_hides_its_old_self(self) -> None:
        old: dict[str, Any] = {"ip": "10.0.0.1", "endpoint": "10.0.0.1", "port": 7001, "health": "fail"}
        for now, then in ((1, 3), (3, 1)):
            was = shard_node(then, "replica", **old)
            reply = [
                shard(
                    [0, 1],
                    shard_node(2),
                    was,
                    shard_node(now, "replica", ip="10.0.0.1", endpoint="10.0.0.1", port=7001),
                )
            ]
            topology = read(reply, line(2, "myself,master", 1, "0-1"))
            assert {node.id for node in topology.nodes()} == {ID(now), ID(2)}

    def test_a_slot_owner_stays_whoever_has_its_address(self) -> None:
        lost: dict[str, Any] = {"ip": "10.0.0.1", "endpoint": "10.0.0.1", "port": 7001, "health": "fail"}
        topology = read([shard([0, 1], shard_node(2, **lost)), shard([], shard_node(1))])
        assert owners(topology) == {0: ID(2)}


class TestOverlap:
    def test_the_higher_config_epoch_wins(self) -> None:
        reply = [
            shard([0, 100], shard_node(1)),
            shard([50, 60, 90, 200], shard_node(2)),
            shard([55, 55], shard_node(3)),
        ]
        epochs = {1: 5, 2: 7, 3: 6}
        topology = read(reply, *(line(n, "master", epoch, "0-1") for n, epoch in epochs.items()))
        assert {s.primary.id: s.slots for s in topology.shards if s.primary} == {
            ID(1): ((0, 49), (61, 89)),
            ID(2): ((50, 60), (90, 200)),
            ID(3): (),
        }
        assert topology.covered == 201

    def test_at_equal_epochs_the_smaller_id_wins(self) -> None:
        for order in ([1, 2], [2, 1]):
            topology = read([shard([0, 100], shard_node(n), id=f"shard-{9 - n}") for n in order])
            assert owners(topology) == {0: ID(1)}

    def test_a_claim_without_a_primary_is_the_weakest(self) -> None:
        topology = read([shard([0, 100], shard_node(1, "replica")), shard([0, 50], shard_node(2))])
        assert topology.covered == 51
        assert owners(topology) == {0: ID(2)}


class TestSlots:
    def test_redis_3_has_no_ids(self) -> None:
        """The ids come from NODES; without it the address stands for the node."""
        reply = [[0, 100, ["10.0.0.1", 7001], ["10.0.0.2", 7002]], [200, 300, ["10.0.0.1", 7001], ["10.0.0.2", 7002]]]
        nodes = "\n".join(
            [
                line(1, "myself,master", 4, "0-100", "200-300", at="10.0.0.1:7001"),
                line(2, "slave", of=1, at="10.0.0.2:7002"),
            ]
        )
        topology = build(ASKED, AddressRules(), slots=reply, nodes=nodes)
        assert [(node.id, node.epoch) for node in topology.nodes()] == [(ID(1), 4), (ID(2), 1)]
        assert topology.shards[0].slots == ((0, 100), (200, 300))
        assert topology.epoch == 4
        bare = build(ASKED, AddressRules(), slots=reply)
        assert [node.id for node in bare.nodes()] == ["10.0.0.1:7001", "10.0.0.2:7002"]
        assert bare.epoch == UNKNOWN_EPOCH

    def test_more_elements_than_known(self) -> None:
        row = [0, 16383, ["10.0.0.1", 7001, ID(1), [b"ip", b"10.0.0.1", b"shard", b"x"], b"more", 7]]
        assert build(ASKED, AddressRules(), slots=[row]).covered == SLOTS

    def test_a_row_without_nodes(self) -> None:
        topology = build(ASKED, AddressRules(), slots=[[0, 100]])
        assert topology.covered == 0
        assert [shard.slots for shard in topology.shards] == [((0, 100),)]


class TestNodes:
    def test_a_line(self) -> None:
        text = line(1, "myself,slave,fail?", 12, "0-5", "7", f"[93-<-{ID(2)}]", f"[77->-{ID(2)}]", of=2)
        (got,) = parse_nodes(text.replace("@17001", "@17001,n1.example,shard-id=abc") + "\r\n").values()
        assert (got.ip, got.port, got.hostname, got.primary_id) == ("10.0.0.1", 7001, "n1.example", ID(2))
        assert (got.role, got.failed, got.epoch, got.link_up) == ("replica", False, 12, True)
        assert got.slots == ((0, 5), (7, 7))

    def test_names_without_a_host_name(self) -> None:
        (got,) = parse_nodes(line(1, "master", at="10.0.0.1:7001@17001,,shard-id=abc")).values()
        assert got.hostname == ""

    def test_info(self) -> None:
        told = parse_info(b"cluster_state:fail\r\ncluster_current_epoch:9\r\ncluster_slots_assigned:3\r\nnew:x:y\r\n")
        assert (told.state, told.current_epoch, told.slots_assigned, told.known_nodes) == ("fail", 9, 3, 0)
        assert parse_info("cluster_enabled:0").current_epoch == UNKNOWN_EPOCH


class TestMalformed:
    @pytest.mark.parametrize(
        "reply",
        [
            None,
            b"OK",
            7,
            [7],
            [[b"slots"]],
            [[b"slots", [], b"nodes"]],
            [["slots", [0]]],
            [["nodes", []]],
            [["slots", []]],
            [["slots", [0], "nodes", []]],
            [["slots", [5, 4], "nodes", []]],
            [["slots", [0, 16384], "nodes", []]],
            [["slots", [-1, 5], "nodes", []]],
            [["slots", [b"x", 5], "nodes", []]],
            [["slots", [0, None], "nodes", []]],
            [["slots", [0, [1]], "nodes", []]],
            [["slots", ["9" * 5000, 1], "nodes", []]],
            [["slots", [], "nodes", [["port", 1]]]],
            [["slots", [], "nodes", [7]]],
        ],
    )
    def test_shards(self, reply: Any) -> None:
        with pytest.raises(TopologyError):
            parse_shards(reply)
        with pytest.raises(TopologyError):
            build(ASKED, AddressRules(), shards=reply)

    @pytest.mark.parametrize(
        "reply",
        [b"OK", [7], [[0]], [[0, 16384, ["h", 1]]], [[0, 1, []]], [[0, 1, ["h"]]], [[0, 1, ["h", 1, "id", ["odd"]]]]],
    )
    def test_slots(self, reply: Any) -> None:
        with pytest.raises(TopologyError):
            parse_slots(reply)

    @pytest.mark.parametrize(
        "reply",
        [7, "a b c", line(1, "master").replace(":7001@", ":x@"), line(1, "master", -1), line(1, "master", 1, "16384")],
    )
    def test_nodes(self, reply: Any) -> None:
        with pytest.raises(TopologyError):
            parse_nodes(reply)

    def test_info(self) -> None:
        replies: list[object] = [7, [], "cluster_current_epoch:many", "cluster_current_epoch:" + "9" * 5000]
        for reply in replies:
            with pytest.raises(TopologyError):
                parse_info(reply)

    def test_not_a_cluster(self) -> None:
        error = RuntimeError("ERR This instance has cluster support disabled")
        with pytest.raises(
            TopologyError, match=r"not a cluster node \(ERR This instance has cluster support disabled\)"
        ) as caught:
            build(ASKED, AddressRules(), shards=error, nodes=error, info=error)
        assert caught.value.not_a_cluster

    def test_refused(self) -> None:
        error = RuntimeError("NOPERM this user has no permissions to run the 'cluster|slots' command")
        with pytest.raises(TopologyError, match="CLUSTER SLOTS failed: NOPERM") as caught:
            build(ASKED, AddressRules(), shards=error, slots=error)
        assert not caught.value.not_a_cluster

    def test_ports_that_are_none(self) -> None:
        for port in (0, -1, 65536, b"x", None, "9" * 5000):
            assert build(ASKED, AddressRules(), shards=[shard([0, 1], shard_node(1, port=port))]).covered == 0
