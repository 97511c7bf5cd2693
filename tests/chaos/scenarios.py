"""What can go wrong, one function each, in the order of the table; the registry is at the end.

A scenario breaks something under load and puts it right again: the stage then waits until all is well, and judges.
Where primaries lose their role without having replicated, it says so (stage.fall); in every other scenario the cluster
loses nothing, and a single acknowledged write that is missing is a violation.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proxy.embedded import EmbeddedNode, wait_for
from tests.chaos.soak import random_faults
from tests.chaos.stage import Stage
from tests.support.cluster import slot_of

STAY_S = 3.0  # how long what is broken stays so after the cluster has helped itself


@dataclass(frozen=True)
class Scenario:
    """about: one line for the table. short: part of the short run. bound_s: it is given up after that.

    server: the only kind that can do this; "" = both.
    """

    name: str
    about: str
    play: Callable[[Stage], None]
    short: bool = False
    bound_s: float = 120.0
    server: str = ""


# -- what many of them have in common


def taken_over(
    stage: Stage, node: EmbeddedNode, fell: Callable[[], object], back: Callable[[], object], stay_s: float = STAY_S
) -> None:
    """A primary falls, a replica takes over, and after a while what fell is back."""
    stage.fault(0)
    stage.fall(node, fell)
    stage.await_takeover()
    stage.sleep(stay_s)
    back()


def for_a_while(stage: Stage, begin: Callable[[], object], seconds: float, end: Callable[[], object]) -> None:
    """Something is wrong with a node, and nobody takes over."""
    stage.fault(0)
    begin()
    stage.sleep(seconds)
    end()


def bad_links(stage: Stage, seconds: float, mode: str, **rule: Any) -> None:
    """The network is bad everywhere; see Links.set()."""
    stage.fault(0, 1, 2)
    stage.links.set(mode, **rule)
    stage.sleep(seconds)
    stage.links.heal()


def cut_off(stage: Stage, **rule: Any) -> None:
    """Of what is between the proxy and a primary, this is lost for 4 s."""
    name = stage.cluster.name(stage.primary())
    for_a_while(stage, lambda: stage.links.set("drop", source="proxy", node=name, **rule), 4.0, stage.links.heal)


# -- nodes


def kill_primary(stage: Stage) -> None:
    node = stage.primary()
    cluster = stage.cluster
    taken_over(stage, node, lambda: cluster.kill(node), lambda: cluster.start_again(node), STAY_S / 2)


def kill_lagging_primary(stage: Stage) -> None:
    """Its replica is 0.3 s behind: the cluster loses that much for certain, and nothing else may be missing."""
    node, replica = stage.primary(), stage.cluster.name(stage.replica())
    rule = stage.links.set("delay", source=replica, channel="client", delay_s=0.3)
    stage.sleep(1.0)

    def kill() -> None:
        stage.links.close("reset", source=replica, node=stage.cluster.name(node))  # and what is on its way
        stage.cluster.kill(node)
        stage.links.unset(rule)

    taken_over(stage, node, kill, lambda: stage.cluster.start_again(node), STAY_S / 2)


def stop_primary(stage: Stage) -> None:
    node = stage.primary()
    taken_over(stage, node, lambda: stage.cluster.pause(node), lambda: stage.cluster.resume(node))


def stop_primary_briefly(stage: Stage) -> None:
    node = stage.primary()
    for_a_while(stage, lambda: stage.cluster.pause(node), 1.0, lambda: stage.cluster.resume(node))


def kill_replica(stage: Stage) -> None:
    node = stage.replica()
    for_a_while(stage, lambda: stage.cluster.kill(node), 4.0, lambda: stage.cluster.start_again(node))


def stop_replica(stage: Stage) -> None:
    node = stage.replica()
    for_a_while(stage, lambda: stage.cluster.pause(node), 5.0, lambda: stage.cluster.resume(node))


def failover(stage: Stage) -> None:
    replica = stage.replica()
    stage.fault(0)
    stage.cluster.failover(replica)
    stage.sleep(1.0)


def failover_force(stage: Stage) -> None:
    replica = stage.replica()
    taken_over(stage, stage.primary(), lambda: replica.command("CLUSTER", "FAILOVER", "FORCE"), lambda: None, 1.0)


def all_down(stage: Stage) -> None:
    stage.fault(0, 1, 2)
    for node in stage.cluster.nodes:
        stage.cluster.kill(node)
    stage.sleep(6.0)
    for node in stage.cluster.nodes:
        stage.cluster.start_again(node)


def rolling_restart(stage: Stage) -> None:
    """As an operator does it: replicas first; a primary hands its role over before it is restarted."""
    stage.fault(0, 1, 2)
    for node in stage.cluster.nodes:
        if stage.cluster.role(node) == "primary":
            replica = stage.cluster.replicas_of(node)[0]
            stage.cluster.failover(replica)
        stage.cluster.shut_down(node)
        stage.cluster.start_again(node)
        stage.cluster.wait_ok(30.0)


# -- the network


def proxy_cut_off(stage: Stage) -> None:
    cut_off(stage)


def primary_isolated(stage: Stage) -> None:
    node = stage.primary()
    taken_over(stage, node, lambda: stage.links.isolate(stage.cluster.name(node)), stage.links.heal)


def primary_unreachable(stage: Stage) -> None:
    node = stage.primary()
    name = stage.cluster.name(node)

    def cut() -> None:
        stage.links.set("drop", node=name)
        stage.links.set("drop", source=name)

    taken_over(stage, node, cut, stage.links.heal)


def delay(stage: Stage) -> None:
    bad_links(stage, 6.0, "delay", channel="client", delay_s=0.025, jitter_s=0.01)


def stalls(stage: Stage) -> None:
    bad_links(stage, 6.0, "stall", source="proxy", channel="client", chance=0.003, stall_s=0.8)


def deaf_primary(stage: Stage) -> None:
    cut_off(stage, direction="up")


def mute_primary(stage: Stage) -> None:
    cut_off(stage, direction="down")


def cut_bytes(stage: Stage) -> None:
    bad_links(stage, 6.0, "cut", source="proxy", channel="client", after=[100, 60000])


def refused_flapping(stage: Stage) -> None:
    stage.fault(0)
    name = stage.cluster.name(stage.primary())
    for _ in range(6):
        rule = stage.links.set("refuse", node=name, channel="client")
        stage.sleep(0.4)
        stage.links.unset(rule)
        stage.sleep(0.6)


# -- slots


def there_and_back(stage: Stage, move: Callable[[int, EmbeddedNode, EmbeddedNode], None]) -> None:
    """The workload's own slots go from each primary to another one and back; move: slot, source, target."""
    stage.fault(0, 1, 2)
    for back in (False, True):
        for place, tag in enumerate(stage.workload.tags):
            slot = slot_of(f"{{{tag}}}")
            source = stage.cluster.owner_of(slot)
            home = stage.cluster.nodes[place]
            move(slot, source, home if back else next(node for node in stage.cluster.primaries() if node is not source))
    stage.sleep(0.5)


def slots_moved(stage: Stage) -> None:
    """Key by key."""
    there_and_back(stage, lambda slot, source, target: stage.cluster.move_slots([slot], source, target, batch=3))


def slots_moved_atomically(stage: Stage) -> None:
    """By CLUSTER MIGRATESLOTS (Valkey 9)."""

    def migrate(slot: int, source: EmbeddedNode, target: EmbeddedNode) -> None:
        source.command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target.id)
        wait_for(lambda: slot in stage.cluster.slots_of(target), 20.0, f"slot {slot} is moved")

    there_and_back(stage, migrate)


# -- the proxy


def worker_killed(stage: Stage) -> None:
    stage.fault(0, 1, 2)
    stage.kill_worker()
    stage.sleep(2.0)


def during_failover(stage: Stage, then: Callable[[], None]) -> None:
    """A primary is killed, and before anybody has taken over, `then` happens to the proxy."""
    node = stage.primary()
    stage.fault(0, 1, 2)
    stage.fall(node, lambda: stage.cluster.kill(node))
    stage.sleep(0.7)
    then()
    stage.await_takeover()
    stage.sleep(1.0)
    stage.cluster.start_again(node)


def reload_in_failover(stage: Stage) -> None:
    def reload() -> None:
        stage.daemon.signal(signal.SIGHUP)

    during_failover(stage, reload)


def worker_killed_in_failover(stage: Stage) -> None:
    during_failover(stage, stage.kill_worker)


def upgrade_in_failover(stage: Stage) -> None:
    def upgrade() -> None:
        stage.daemon = stage.daemon.upgrade()

    during_failover(stage, upgrade)


def restart_in_failover(stage: Stage) -> None:
    during_failover(stage, stage.restart_proxy)


# -- all of it


def mixture(stage: Stage) -> None:
    stage.fault(0, 1, 2)
    random_faults(stage, 30.0)


SCENARIOS = (
    Scenario("kill-primary", "kill -9 of a primary, which comes back as a replica", kill_primary, short=True),
    Scenario("kill-lagging-primary", "kill -9 of a primary whose replica is 0.3 s behind", kill_lagging_primary),
    Scenario("stop-primary", "SIGSTOP of a primary, SIGCONT 3 s after its replica took over", stop_primary),
    Scenario("stop-primary-1s", "SIGSTOP of a primary for 1 s: no failover", stop_primary_briefly),
    Scenario("kill-replica", "kill -9 of a replica, back after 4 s", kill_replica),
    Scenario("stop-replica", "SIGSTOP of a replica for 5 s", stop_replica),
    Scenario("failover", "CLUSTER FAILOVER", failover, short=True),
    Scenario("failover-force", "CLUSTER FAILOVER FORCE", failover_force),
    Scenario("all-down", "kill -9 of all nodes, back after 6 s with their data", all_down),
    Scenario("rolling-restart", "all nodes restarted one by one, primaries after a failover", rolling_restart),
    Scenario("proxy-cut-off", "the proxy cannot reach a primary for 4 s; the nodes can", proxy_cut_off),
    Scenario("primary-isolated", "a primary cut off from the nodes, not from the proxy", primary_isolated),
    Scenario("primary-unreachable", "a primary cut off from nodes and proxy; packets vanish", primary_unreachable),
    Scenario("delay", "50 to 70 ms more for each round trip to a node, for 6 s", delay),
    Scenario("stalls", "3 of 1,000 packets to and from nodes 0.2 to 0.8 s late, for 6 s", stalls),
    Scenario("deaf-primary", "half-open: nothing gets to a primary for 4 s", deaf_primary),
    Scenario("mute-primary", "half-open: nothing comes back from a primary for 4 s", mute_primary),
    Scenario("cut-bytes", "every connection to a node ends after 0.1 to 60 KB, anywhere in a frame", cut_bytes),
    Scenario("refused-flapping", "a primary resets and refuses connections for 0.4 s of each second", refused_flapping),
    Scenario("slots-moved", "the busy slots migrated key by key, twice", slots_moved),
    Scenario(
        "slots-moved-atomically",
        "the busy slots by CLUSTER MIGRATESLOTS, twice",
        slots_moved_atomically,
        server="valkey",
    ),
    Scenario("worker-killed", "kill -9 of a worker of the proxy", worker_killed),
    Scenario("reload-in-failover", "a primary killed, then a reload", reload_in_failover),
    Scenario("worker-killed-in-failover", "a primary killed, then a worker", worker_killed_in_failover),
    Scenario("upgrade-in-failover", "a primary killed, then an upgrade", upgrade_in_failover),
    Scenario("restart-in-failover", "a primary killed, then SIGTERM and a new proxy", restart_in_failover),
    Scenario("mixture", "random faults of all kinds for 30 s", mixture),
)
