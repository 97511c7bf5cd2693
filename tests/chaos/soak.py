"""Random faults one after another for a given time: a scenario's last part, and the soak.

Called by tests.chaos.scenarios (mixture) and tests.chaos.run (--soak). What is random comes from the stage's seed; when
it happens does not, so a seed repeats the faults and their order, not the run.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from proxy.embedded import EmbeddedError, EmbeddedNode
from tests.chaos.footprint import Footprint
from tests.chaos.stage import Stage

Fault = Callable[[Stage, EmbeddedNode], None]

# What may be more at the end of a soak than at its beginning, both with the same clients. Memory: allocators keep what
# a burst of held commands needed once, in each of three processes, and histograms of commands and nodes that came up
# later; what leaked with each fault would be many times that after a hundred faults. Descriptors: connections to nodes
# that have been replaced are drained for some seconds, and idle leases of blocking commands are kept for a minute.
MEMORY_MORE = 24 << 20
DESCRIPTORS_MORE = 40
SOCKETS_MORE = 40


def random_faults(stage: Stage, seconds: float) -> list[str]:
    """Breaks something, puts it right, lets the cluster recover, and again; the names of what was done."""
    done: list[str] = []
    until = time.monotonic() + seconds
    names = sorted(FAULTS)
    while time.monotonic() < until:
        name = stage.random.choice(names)
        node = stage.primary(stage.random.randrange(3))
        done.append(name)
        stage.notes.append(f"{name} {stage.cluster.name(node)}")
        FAULTS[name](stage, node)
        with contextlib.suppress(EmbeddedError):  # the next fault may as well hit a cluster that is not whole
            stage.cluster.wait_ok(stage.random.choice((1.0, 5.0, 20.0)))
    stage.cluster.wait_ok(40.0)
    return done


def compare(before: Footprint, after: Footprint) -> list[str]:
    """What did not come back to where it began, in words."""
    found = []
    if after.memory > before.memory + MEMORY_MORE:
        found.append(f"memory went from {before.memory >> 20} to {after.memory >> 20} MB")
    if after.descriptors > before.descriptors + DESCRIPTORS_MORE:
        found.append(f"descriptors went from {before.descriptors} to {after.descriptors}")
    if after.sockets > before.sockets + SOCKETS_MORE:
        found.append(f"sockets went from {before.sockets} to {after.sockets}")
    return found


# -- faults


def _kill(stage: Stage, node: EmbeddedNode) -> None:
    stage.fall(node, lambda: stage.cluster.kill(node))
    stage.sleep(stage.random.uniform(0.1, 4.0))
    stage.cluster.start_again(node)
    stage.risen(node)


def _stop(stage: Stage, node: EmbeddedNode) -> None:
    stage.fall(node, lambda: stage.cluster.pause(node))
    stage.sleep(stage.random.uniform(0.1, 5.0))
    stage.cluster.resume(node)
    stage.risen(node)


def _kill_replica(stage: Stage, node: EmbeddedNode) -> None:
    for replica in stage.cluster.replicas_of(node)[:1]:
        stage.cluster.kill(replica)
        stage.sleep(stage.random.uniform(0.1, 3.0))
        stage.cluster.start_again(replica)


def _failover(stage: Stage, node: EmbeddedNode) -> None:
    with contextlib.suppress(RedisError, EmbeddedError):
        for replica in stage.cluster.replicas_of(node)[:1]:
            stage.cluster.failover(replica, 10.0)


def _isolate(stage: Stage, node: EmbeddedNode) -> None:
    stage.fall(node, lambda: stage.links.isolate(stage.cluster.name(node)))
    stage.sleep(stage.random.uniform(0.5, 5.0))
    stage.links.heal()
    stage.risen(node)


def _network(mode: str, **rule: object) -> Fault:
    def disturb(stage: Stage, node: EmbeddedNode) -> None:
        stage.links.set(mode, source="proxy", node=stage.cluster.name(node), **rule)
        stage.sleep(stage.random.uniform(0.2, 4.0))
        stage.links.heal()

    return disturb


def _reset(stage: Stage, node: EmbeddedNode) -> None:
    stage.links.close(stage.random.choice(("reset", "close")), node=stage.cluster.name(node), source="proxy")


def _worker(stage: Stage, node: EmbeddedNode) -> None:
    stage.kill_worker()
    stage.sleep(0.5)


def _reload(stage: Stage, node: EmbeddedNode) -> None:
    stage.daemon.signal(signal.SIGHUP)


FAULTS: dict[str, Fault] = {
    "kill": _kill,
    "stop": _stop,
    "kill replica": _kill_replica,
    "failover": _failover,
    "isolate": _isolate,
    "drop": _network("drop"),
    "deaf": _network("drop", direction="up"),
    "mute": _network("drop", direction="down"),
    "delay": _network("delay", delay_s=0.02, jitter_s=0.03),
    "stall": _network("stall", chance=0.01, stall_s=0.8),
    "cut": _network("cut", after=[100, 60000]),
    "refuse": _network("refuse"),
    "reset": _reset,
    "worker": _worker,
    "reload": _reload,
}
