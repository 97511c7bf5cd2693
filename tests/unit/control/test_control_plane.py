"""The control plane in front of real nodes, and of scripted ones for what real ones do not do on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from pydantic import SecretStr

from proxy.cluster.topology import SLOTS, Address
from proxy.commands.table import ROWS
from proxy.config.models import Settings, from_seeds
from proxy.control import control_plane as module
from proxy.control.control_plane import ControlPlane
from proxy.control.tasks import failures
from proxy.embedded import EmbeddedCluster
from proxy.ipc.channel import encode
from proxy.ipc.messages import TO_WORKER, Commands, NodeFacts, Report, Topology
from tests.support.fake_node import SILENCE, Cut, FakeNode, Shard, shards_reply
from tests.support.raw import array, bulk
from tests.support.refresher import asked, closed, until

FOREVER_S = 3600.0
MEGABYTE = 1 << 20
View = dict[str, Any]


class Plane:
    """A control plane, and a worker that was there from the start: it has what it was begun with and every change."""

    def __init__(self, settings: Settings) -> None:
        self.sent: list[Topology | Commands | NodeFacts] = []
        self.deaf_to: type[Any] | None = None  # such messages cannot be sent
        self.control = ControlPlane(settings, self._send)
        self._worker = self.new_worker()

    def _send(self, message: Topology | Commands | NodeFacts) -> None:
        body = encode(message)
        if self.deaf_to is not None and isinstance(message, self.deaf_to):
            raise OverflowError("no message can carry it")
        self.sent.append(message)
        follow(self._worker, TO_WORKER.decode(body))

    def new_worker(self) -> View:
        """What a worker that is started now knows."""
        control = self.control
        view: View = {"commands": None, "nodes": {}, "limits": {}, "owners": b"", "names": {}, "epoch": -1}
        for message in (control.topology, control.commands, control.facts):
            if message is not None:
                follow(view, TO_WORKER.decode(encode(message)))
        return view

    def same(self) -> bool:
        """Whether it makes no difference when a worker was started."""
        return self._worker == self.new_worker()

    def told(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.sent if isinstance(message, kind)]


def follow(view: View, message: Any) -> None:
    """As a worker obeys it."""
    match message:
        case Topology():
            view["nodes"] = {f"{node.host}:{node.port}": (node.replica, node.usable) for node in message.nodes}
            view["limits"] = {node: told for node, told in view["limits"].items() if node in view["nodes"]}
            view |= {"owners": message.owners, "names": message.names, "epoch": message.epoch}
        case NodeFacts():
            for address, usable in message.usable.items():
                if address in view["nodes"]:
                    view["nodes"][address] = (view["nodes"][address][0], usable)
            view["limits"] |= message.limits
        case Commands():
            view["commands"] = message


def settings(seeds: list[str], *, backends: dict[str, Any] | None = None, **cluster: Any) -> Settings:
    """Only triggers cause refreshes and probes, unless said otherwise."""
    made = from_seeds(seeds)
    defaults: dict[str, Any] = {"refresh_interval": FOREVER_S, "refresh_min_gap": 0.0, "refresh_timeout": 5.0}
    health: dict[str, Any] = {"health_interval": FOREVER_S, "connect_timeout": 5.0}
    return made.model_copy(
        update={
            "cluster": made.cluster.model_copy(update=defaults | cluster),
            "backends": made.backends.model_copy(update=health | (backends or {})),
        }
    )


Scene = Callable[[Plane], Awaitable[None]]


def run(config: Settings, scene: Scene) -> Plane:
    """The scene with a started control plane; checks that stop() leaves nothing."""

    async def body() -> Plane:
        plane = Plane(config)
        await plane.control.start()
        try:
            async with asyncio.timeout(60):
                await scene(plane)
                assert plane.same()
        finally:
            await plane.control.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return plane

    return asyncio.run(body())


# -- real nodes ----------------------------------------------------------------------------------------------------


def test_what_a_new_worker_needs(cluster: EmbeddedCluster) -> None:
    primaries = {node.address: node for node in cluster.primaries()}

    async def scene(plane: Plane) -> None:
        control = plane.control
        assert (control.topology, control.commands.rows, control.facts) == (None, ROWS, NodeFacts())
        assert await control.ready(10.0)
        await until(lambda: control.facts.limits.keys() == primaries.keys())
        assert plane.same()
        # Redis 7.0 calls the replicas of an idle shard loading, until they are probed.
        nodes = {node.address: (node.address not in primaries, True) for node in cluster.nodes}
        await until(lambda: plane.new_worker()["nodes"] == nodes)
        assert control.topology is not None
        assert control.topology.covered == SLOTS
        assert set(control.facts.limits.values()) == {(512 * MEGABYTE, 1024 * MEGABYTE)}
        info = cluster.nodes[0].info("server")
        told = control.commands
        assert (told.server_name, told.redis_version) == (info.get("server_name", "redis"), info["redis_version"])
        assert told.valkey_version == info.get("valkey_version", "")
        assert told.source == f"{told.server_name} {told.valkey_version or told.redis_version}"
        assert {row.name for row in told.rows} >= {row.name for row in ROWS}

    plane = run(settings(cluster.seeds[:1]), scene)
    assert (len(plane.told(Topology)), len(plane.told(Commands))) == (1, 1)


def test_every_change_of_the_cluster_is_told() -> None:
    """A limit, a failover and a replica that dies: whoever was there knows what a new worker is told."""
    with EmbeddedCluster(primaries=3, replicas=1) as cluster:
        replica = cluster.nodes[3]
        config = settings(
            cluster.seeds, refresh_interval=0.2, backends={"health_interval": 0.05, "connect_timeout": 1.0}
        )

        async def scene(plane: Plane) -> None:
            assert await plane.control.ready(10.0)
            await until(lambda: len(plane.control.facts.limits) == 3)
            limits = dict(plane.control.facts.limits)
            await asyncio.to_thread(cluster.nodes[1].command, "CONFIG", "SET", "proto-max-bulk-len", 2 * MEGABYTE)
            clients = config.clients.model_copy(update={"max_query": 5 * MEGABYTE})
            plane.control.reconfigure(config.model_copy(update={"clients": clients}))  # the nodes are asked again
            await until(lambda: plane.control.facts.limits != limits)
            assert plane.control.facts.limits == limits | {cluster.nodes[1].address: (2 * MEGABYTE, 1024 * MEGABYTE)}
            assert plane.same()
            await asyncio.to_thread(cluster.failover, replica)
            await until(lambda: plane.new_worker()["nodes"][replica.address] == (False, True))
            await until(lambda: plane.new_worker()["nodes"][cluster.nodes[0].address][0])  # a replica, a moment later
            assert plane.same()
            await asyncio.to_thread(cluster.kill, cluster.nodes[4])
            await until(lambda: not plane.new_worker()["nodes"][cluster.nodes[4].address][1])
            assert plane.same()

        run(config, scene)


# -- scripted nodes ------------------------------------------------------------------------------------------------


SYNCED = bulk(b"role:slave\r\nmaster_link_status:up\r\nmaster_sync_in_progress:0\r\nredis_version:7.0.0\r\n")


def row(name: bytes, arity: int = 2) -> bytes:
    return array(bulk(name), b":%d\r\n" % arity, array(b"+readonly\r\n"), b":1\r\n", b":1\r\n", b":1\r\n")


def tell_limits(node: FakeNode, bulk_len: int, query: int) -> None:
    values = {b"proto-max-bulk-len": bulk_len, b"client-query-buffer-limit": query}
    node.on("CONFIG GET", lambda session, words: array(bulk(words[2]), bulk(b"%d" % values.get(words[2], 1))))


@pytest.fixture
def nodes() -> Iterator[tuple[FakeNode, FakeNode]]:
    """A primary with all slots and its replica."""
    with ExitStack() as stack:
        primary, replica = (stack.enter_context(FakeNode(name * 40)) for name in "ab")
        shards = shards_reply([Shard([(0, SLOTS - 1)], [(primary, "master"), (replica, "replica")])])
        for node in (primary, replica):
            node.shards = shards
            node.on("COMMAND", array(row(b"get"), row(b"new.command")))
            tell_limits(node, 512 * MEGABYTE, 1024 * MEGABYTE)
        replica.on("INFO", SYNCED)
        yield primary, replica


@pytest.fixture
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands and limits are asked for all the time."""
    monkeypatch.setattr(module, "COMMANDS_EVERY_S", 0.02)
    monkeypatch.setattr(module, "COMMANDS_RETRY_S", 0.02)


def probes(node: FakeNode) -> int:
    return sum(words[1:] == [b"replication"] for words in node.seen("INFO"))


def test_what_a_worker_reports_causes_a_refresh(nodes: tuple[FakeNode, FakeNode]) -> None:
    primary, replica = nodes

    async def scene(plane: Plane) -> None:
        assert await plane.control.ready(10.0)
        for count, sign in enumerate(("moved", "lost", "uncovered", "connect"), 2):
            plane.control.report(Report([sign]))
            await until(lambda: asked(primary) + asked(replica) == count)  # noqa: B023
            await until(lambda: len(plane.told(Topology)) == count)  # noqa: B023
        plane.control.report(Report(["moved", "lost", "uncovered"]))
        plane.control.report(Report(["moved"]))
        await until(lambda: asked(primary) + asked(replica) == 6)
        await asyncio.sleep(0.1)
        assert asked(primary) + asked(replica) == 6  # signs of one moment are one refresh

    plane = run(settings([primary.address]), scene)
    outcomes = {key: count for key, count in plane.control.refresher.outcomes.items() if count}
    assert outcomes == {
        ("start", "changed"): 1,
        ("moved", "unchanged"): 2,
        ("lost", "unchanged"): 1,
        ("uncovered", "unchanged"): 1,
        ("other", "unchanged"): 1,
    }


def test_a_replica_that_is_gone_is_looked_for(nodes: tuple[FakeNode, FakeNode]) -> None:
    """It may be back elsewhere, and of a replica that is not read from no worker tells."""
    primary, replica = nodes

    async def scene(plane: Plane) -> None:
        assert await plane.control.ready(10.0)
        await until(lambda: plane.control.health.reason(Address.parse(replica.address)) == "ok")  # probed
        before = plane.control.refresher.outcomes["lost", "unchanged"]
        replica.close()
        await until(lambda: plane.control.refresher.outcomes["lost", "unchanged"] > before)

    run(settings([primary.address], backends={"health_interval": 0.05}), scene)


def test_a_failed_replica_that_is_back_is_asked_for(nodes: tuple[FakeNode, FakeNode]) -> None:
    """The workers shun it as long as the topology calls it failed, and no traffic gives a sign of it."""
    primary, replica = nodes
    failed = Shard([(0, SLOTS - 1)], [(primary, "master"), (replica, "replica")], failed=1)
    primary.shards = replica.shards = shards_reply([failed])

    async def scene(plane: Plane) -> None:
        await until(lambda: plane.control.refresher.outcomes["back", "unchanged"])

    run(settings([primary.address], backends={"health_interval": 0.05}), scene)


def test_a_replica_that_refused_a_read_is_unfit_until_the_next_probe(nodes: tuple[FakeNode, FakeNode]) -> None:
    primary, replica = nodes
    config = settings([primary.address])

    async def scene(plane: Plane) -> None:
        assert await plane.control.ready(10.0)
        await until(lambda: plane.control.health.reason(Address.parse(replica.address)) == "ok")  # probed
        plane.sent.clear()
        told = Report([], unfit={replica.address: "LOADING", primary.address: "LOADING", "gone:1": "LOADING"})
        plane.control.report(told)
        plane.control.report(told)
        assert plane.sent == [NodeFacts({replica.address: False})]
        assert plane.control.facts.usable == {replica.address: False}
        plane.control.report(Report(["moved"]))  # a new topology does not forget it
        await until(lambda: plane.told(Topology))
        assert plane.new_worker()["nodes"][replica.address] == (True, False)
        assert plane.control.facts.usable == {}
        assert plane.same()
        backends = config.backends.model_copy(update={"health_interval": 0.05})
        plane.control.reconfigure(config.model_copy(update={"backends": backends}))
        await until(lambda: plane.new_worker()["nodes"][replica.address] == (True, True))
        assert plane.sent[-1] == NodeFacts({replica.address: True})

    run(config, scene)


@pytest.mark.parametrize(
    ("kind", "reason"), [("silent", "it is silent"), ("unreached", "it closes connections, or takes none")]
)
def test_a_primary_that_a_worker_finds_silent_is_suspected(
    nodes: tuple[FakeNode, FakeNode], kind: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are asked about it, until it answers."""
    primary, replica = nodes

    async def scene(plane: Plane) -> None:
        assert await plane.control.ready(10.0)
        primary.on("PING", SILENCE)
        for session in primary.sessions:
            session.sock.close()
        plane.control.report(Report([], silent=[replica.address, "gone:1"]))
        assert plane.control.suspects.suspected == frozenset()
        plane.control.suspects._clock = lambda: 1e9  # its last answer was long ago
        plane.control.report(Report([], **{kind: [primary.address]}))
        assert caplog.records[-1].fields["reason"] == reason  # type: ignore[attr-defined]
        assert plane.control.suspects.suspected == {Address.parse(primary.address)}
        await until(lambda: plane.control.refresher.outcomes["silent", "unchanged"])
        before = asked(replica)
        await until(lambda: asked(replica) >= before + 2)
        primary.on("PING", b"+PONG\r\n")
        await until(lambda: not plane.control.suspects.suspected)

    backends = settings([primary.address]).backends.model_copy(update={"health_interval": 0.1, "connect_timeout": 0.2})
    run(settings([primary.address]).model_copy(update={"backends": backends}), scene)


@pytest.mark.usefixtures("_often")
def test_commands_are_told_when_they_have_changed(nodes: tuple[FakeNode, FakeNode]) -> None:
    primary, _ = nodes

    async def scene(plane: Plane) -> None:
        built_in = dict(plane.control.commands.metrics)
        assert "new.command" not in built_in
        await until(lambda: len(primary.seen("COMMAND")) >= 4)
        (told,) = plane.told(Commands)
        assert (told.source, told.server_name, told.redis_version, told.valkey_version) == (
            "redis 7.0.0",
            "redis",
            "7.0.0",
            "",
        )
        assert {row.name: row for row in told.rows}["get"].flags == ("readonly",)
        known = dict(told.metrics)
        assert known.items() > built_in.items()  # an index once given stays
        assert "new.command" in known
        primary.on("COMMAND", array(row(b"get"), row(b"new.command", 3)))
        await until(lambda: len(plane.told(Commands)) == 2)
        assert plane.told(Commands)[1].metrics == known
        primary.on("COMMAND", b"-ERR not now\r\n")
        seen = len(primary.seen("COMMAND"))
        await until(lambda: len(primary.seen("COMMAND")) >= seen + 2)
        assert plane.control.commands is plane.told(Commands)[1]
        assert len(plane.told(Commands)) == 2

    run(settings([primary.address]), scene)


def test_the_counters_names_are_one_dict_for_all_times(nodes: tuple[FakeNode, FakeNode]) -> None:
    """The worker pool reads the counters of workers by the dict of their first message."""
    primary, _ = nodes

    async def scene(plane: Plane) -> None:
        first = plane.control.commands.metrics
        await until(lambda: plane.told(Commands))
        assert plane.control.commands.metrics is first
        assert "new.command" in first

    run(settings([primary.address]), scene)


@pytest.mark.usefixtures("_often")
def test_limits_are_told_when_they_have_changed(nodes: tuple[FakeNode, FakeNode]) -> None:
    primary, replica = nodes

    def limits(plane: Plane) -> list[Any]:
        return [facts.limits for facts in plane.told(NodeFacts) if facts.limits]

    async def scene(plane: Plane) -> None:
        await until(lambda: len(primary.seen("CONFIG")) >= 8)
        assert limits(plane) == [{primary.address: (512 * MEGABYTE, 1024 * MEGABYTE)}]
        tell_limits(primary, MEGABYTE, 0)
        await until(lambda: len(limits(plane)) == 2)
        assert plane.control.facts.limits == {primary.address: (MEGABYTE, 0)}
        for reply in (b"-NOPERM\r\n", b"*0\r\n", b"+OK\r\n", Cut()):
            primary.on("CONFIG GET", reply)
            seen = len(primary.seen("CONFIG"))
            await until(lambda: len(primary.seen("CONFIG")) >= seen + 4)  # noqa: B023
        assert len(limits(plane)) == 2
        replica.shards = primary.shards = shards_reply([Shard([(0, SLOTS - 1)], [(replica, "master")])])
        plane.control.report(Report(["moved"]))
        await until(lambda: plane.control.facts.limits == {replica.address: (512 * MEGABYTE, 1024 * MEGABYTE)})

    run(settings([primary.address]), scene)


# -- faults --------------------------------------------------------------------------------------------------------

DEEP = b"*1\r\n" * 20000 + b":1\r\n"
NONSENSE = [
    b"+OK\r\n",
    b":99999999999999999999\r\n",
    b"*1\r\n$-1\r\n",
    array(bulk(b"x"), array(b":1\r\n", array())),
    b"$5\r\n\xff\xfe\x00\r\n\r\n",
    b"?\x00nonsense\r\n",
    DEEP,
    Cut(b"*3\r\n$1"),
]


@pytest.mark.usefixtures("_often")
@pytest.mark.parametrize("reply", NONSENSE, ids=range(len(NONSENSE)))
@pytest.mark.parametrize(
    "question", ["CLUSTER SHARDS", "CLUSTER INFO", "CLUSTER NODES", "COMMAND", "CONFIG GET", "INFO"]
)
def test_nonsense_ends_nothing(nodes: tuple[FakeNode, FakeNode], question: str, reply: Any) -> None:
    """Whatever one node answers to one question: all the others are asked, and when it has come to its senses, all
    is well."""
    primary, replica = nodes
    sound = {node: dict(node._scripts) for node in nodes}
    for node in nodes:
        node.on(question, reply)

    async def scene(plane: Plane) -> None:
        await until(lambda: len(primary.seen(question.split()[0])) >= 3)
        for node in nodes:
            node._scripts = sound[node]
        await until(lambda: plane.control.topology is not None and plane.told(Commands))
        await until(lambda: plane.control.facts.limits)
        await until(lambda: plane.new_worker()["nodes"][replica.address] == (True, True))

    run(settings([primary.address], refresh_interval=0.05, backends={"health_interval": 0.02}), scene)


@pytest.mark.usefixtures("_often")
def test_what_cannot_be_sent_is_counted_and_not_kept(
    nodes: tuple[FakeNode, FakeNode], caplog: pytest.LogCaptureFixture
) -> None:
    """Else no new worker could be given its first message."""
    primary, replica = nodes
    before = failures["command-table"]

    async def scene(plane: Plane) -> None:
        plane.deaf_to = Commands
        assert await plane.control.ready(10.0)
        await until(lambda: failures["command-table"] >= before + 2)
        assert plane.control.commands.rows == ROWS
        plane.deaf_to = Topology
        await until(lambda: plane.control.commands.rows != ROWS)  # the next attempt was a good one
        known = plane.control.topology
        replica.shards = primary.shards = shards_reply([Shard([(0, 99)], [(primary, "master"), (replica, "replica")])])
        plane.control.report(Report(["moved"]))
        await until(lambda: plane.control.refresher.last_error)
        assert plane.control.topology is known
        assert "publishing failed" in plane.control.refresher.last_error
        plane.deaf_to = None
        plane.control.report(Report(["moved"]))
        await until(lambda: plane.control.topology is not known)

    run(settings([primary.address]), scene)
    assert "a background task failed and is begun again" in caplog.text


def test_stopped_in_the_middle_of_everything(nodes: tuple[FakeNode, FakeNode]) -> None:
    primary, replica = nodes
    primary.on("COMMAND", SILENCE)
    replica.on("INFO", SILENCE)

    async def scene(plane: Plane) -> None:
        await until(lambda: primary.seen("COMMAND") and replica.seen("INFO"))
        primary.on("CLUSTER", SILENCE)
        replica.on("CLUSTER", SILENCE)
        plane.control.report(Report(["moved"]))
        await until(lambda: asked(primary) + asked(replica) == 2)

    run(settings([primary.address]), scene)
    asyncio.run(until(lambda: closed(primary) and closed(replica)))


def test_stopped_before_anybody_answers() -> None:
    async def scene(plane: Plane) -> None:
        assert not await plane.control.ready(0.05)

    with FakeNode() as node:
        node.on("CLUSTER", SILENCE)
        run(settings([node.address]), scene)


def test_new_credentials_hold_for_all(nodes: tuple[FakeNode, FakeNode]) -> None:
    primary, replica = nodes
    config = settings([primary.address])

    async def scene(plane: Plane) -> None:
        await until(lambda: primary.seen("COMMAND") and probes(replica))
        cluster = config.cluster.model_copy(update={"username": "bob", "password": SecretStr("new")})
        plane.control.reconfigure(config.model_copy(update={"cluster": cluster}))
        for node, command in ((primary, b"COMMAND"), (primary, b"CONFIG"), (replica, b"INFO")):
            await until(lambda: authenticated(node, command))  # noqa: B023
        await until(lambda: authenticated(primary, b"CLUSTER") or authenticated(replica, b"CLUSTER"))

    run(config, scene)


def authenticated(node: FakeNode, command: bytes) -> bool:
    """Whether a connection with the new credentials has been asked this."""
    login = [b"AUTH", b"bob", b"new"]
    return any(login in one.commands and any(words[0] == command for words in one.commands) for one in node.sessions)
