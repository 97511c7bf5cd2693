"""One scenario from start to verdict: cluster behind faulty links, proxy, workload and probers put together.

Called by tests.chaos.run, the soak and the tests. A scenario is a function that gets the Stage and breaks something;
what it may say is here: fault() when it begins, fall() for what makes a primary lose its role without having
replicated everything, healed() when nothing is broken any more.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from redis.exceptions import RedisError

from proxy.embedded import HOST, EmbeddedError, EmbeddedNode, free_port, wait_for
from tests.chaos.checker import Checker, Verdict
from tests.chaos.evidence import Evidence
from tests.chaos.footprint import Footprint, footprint
from tests.chaos.gaps import Probers, Sample, Service, judge
from tests.chaos.history import Fall
from tests.chaos.links import Links
from tests.chaos.nodes import Archive, LinkedCluster
from tests.chaos.workload import Workload
from tests.support.cluster import slot_of
from tests.support.proxyd import ProxyDaemon, session_members

WARM_UP_S = 1.5
TAIL_S = 2.0
RECOVERY_S = 40.0
NO_TAKEOVER_S = 3.0


@dataclass
class Result:
    """What came out of one scenario."""

    name: str
    verdict: Verdict
    direct: Service
    proxy: Service
    errors: Counter[str]
    closed: Counter[str]
    operations: int
    before: Footprint
    after: Footprint
    log: str = ""  # the proxy's, when there is something to explain
    samples: dict[str, Any] = field(default_factory=dict)  # what the probers saw, from the fault on
    notes: list[str] = field(default_factory=list)  # what was done, where that is random
    trouble: list[str] = field(default_factory=list)  # what else is wrong: the proxy ended, a sanitizer reports

    @property
    def good(self) -> bool:
        return not self.verdict.violations and not self.trouble


class Stage:
    """See the module; a context manager, and nothing that it started outlives it.

    server: binary of the nodes. prefix: in front of the proxy's command (see ProxyDaemon). seed: of what is random.
    run: what all keys and channels begin with. pace: how many times slower than usual clients are.
    """

    def __init__(
        self,
        *,
        server: str | None = None,
        prefix: Sequence[str] = (),
        seed: int = 0,
        run: str = "c",
        pace: float = 1.0,
    ) -> None:
        self.random = random.Random(seed)
        self.run = run
        self.falls: list[Fall] = []
        self.faulty: set[int] = set()  # places of the tags that a fault concerns
        self.fault_at = self.healed_at = 0.0
        self.notes: list[str] = []
        self._server, self._prefix, self._pace = server, prefix, pace
        self._stack = ExitStack()
        self._watchers: list[threading.Thread] = []
        self._workers_killed = 0
        self._risen: dict[str, float] = {}
        self._ended = threading.Event()

    def __enter__(self) -> Stage:
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="redis-proxy-chaos-")))
            self.links = stack.enter_context(Links())
            self.cluster = stack.enter_context(LinkedCluster(self.links, self._server))
            self.cluster.await_links()
            self.archive = stack.enter_context(Archive(self.cluster, self.folder))
            self.relaxed = (HOST, free_port())
            listeners = [{}, {"address": f"{HOST}:{self.relaxed[1]}", "reads": "prefer_replica"}]
            daemon = ProxyDaemon(
                self.cluster.link_seeds, {"listeners": listeners, "drain": {"timeout": "5s"}}, prefix=self._prefix
            )
            self.first_daemon = self.daemon = daemon.start()
            stack.callback(self._end_proxy)
            nodes = [(HOST, node.port) for node in self.cluster.nodes]
            self.workload = stack.enter_context(
                Workload(self.daemon.address, self.relaxed, self.run, nodes, pace=self._pace)
            )
            stack.callback(self._ended.set)
            wait_for(lambda: self.workload.done() > 200, 20, "the workload is served")
            time.sleep(WARM_UP_S)
            self.before = self.footprint()
            keys = [f"{{{tag}}}:probe" for tag in self.workload.tags]
            nodes = [(HOST, self.links.port(self.cluster.name(node))) for node in self.cluster.nodes]
            self.probers = stack.enter_context(Probers(keys, nodes, self.daemon.address))
            time.sleep(1.0)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, tb)

    # -- for scenarios

    def primary(self, place: int = 0) -> EmbeddedNode:
        """The node that owns the workload's tag number `place`."""
        return self.cluster.owner_of(slot_of(f"{{{self.workload.tags[place]}}}"))

    def replica(self, place: int = 0) -> EmbeddedNode:
        return self.cluster.replicas_of(self.primary(place))[0]

    def fault(self, *places: int) -> None:
        """It begins now, and concerns these shards (the places of their tags)."""
        self.fault_at = self.fault_at or time.monotonic()
        self.faulty |= set(places)

    def healed(self) -> None:
        self.healed_at = time.monotonic()

    def fall(self, node: EmbeddedNode, fell: Callable[[], Any]) -> None:
        """Does what makes a primary fall; from here on what it alone has carried out may be lost by the cluster."""
        replicas = self.cluster.replicas_of(node)
        name = self.cluster.name(node)
        self._risen.pop(name, None)
        at = time.monotonic()
        fell()

        def watch() -> None:
            while not self._ended.wait(0.02):
                if time.monotonic() > self._risen.get(name, math.inf) + NO_TAKEOVER_S:
                    return
                for replica in replicas:
                    with contextlib.suppress(RedisError, OSError):
                        if replica.alive and self.cluster.role(replica) == "primary":
                            self.falls.append(Fall(name, at, time.monotonic()))
                            return

        self._watchers.append(threading.Thread(target=watch, name="fall", daemon=True))
        self._watchers[-1].start()

    def risen(self, node: EmbeddedNode) -> None:
        """It is back: unless somebody takes over soon, it has not fallen at all."""
        self._risen[self.cluster.name(node)] = time.monotonic()

    def await_takeover(self, timeout_s: float = 20.0) -> None:
        """Until every primary that fell has a successor."""
        for watcher in self._watchers:
            watcher.join(timeout_s)
            if watcher.is_alive():
                raise EmbeddedError("no replica took over")

    def kill_worker(self) -> None:
        """kill -9 of one of the proxy's workers."""
        if pids := self.daemon.worker_pids():
            self._workers_killed += 1
            os.kill(self.random.choice(pids), signal.SIGKILL)

    def restart_proxy(self) -> None:
        """SIGTERM, and a new proxy at the same addresses."""
        self.daemon.terminate()
        self.daemon.keep_ports()
        self.daemon.start()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def footprint(self) -> Footprint:
        return footprint(session_members(self.first_daemon.session))

    # -- the end

    def recover(self) -> None:
        """Until the cluster is whole and clients are served again."""
        if not self.healed_at:
            self.healed()
        self.cluster.wait_ok(RECOVERY_S)
        wait_for(self._served, RECOVERY_S, f"every shard is served through the proxy: {self.daemon.log[-2000:]}")

    def _served(self) -> bool:
        with contextlib.suppress(Exception), self.daemon.raw(timeout_s=8.0) as raw:
            return all(raw.command("SET", f"{{{tag}}}:served", 1) == b"+OK\r\n" for tag in self.workload.tags)
        return False

    def finish(self, name: str) -> Result:
        """Ends the traffic, and judges it."""
        self.recover()
        time.sleep(TAIL_S)
        end = time.monotonic()
        direct, through = self.probers.stop()
        time.sleep(0.5)  # the proxy sees that the prober's connections are closed
        after = self.footprint()
        self.workload.finish()
        self._ended.set()
        for watcher in self._watchers:
            watcher.join(5)
        self.cluster.wait_ok(RECOVERY_S)
        evidence = Evidence(self.archive.files(), self.falls)
        contents = self.workload.contents(self.cluster)
        verdict = Checker(self.workload.history, contents, evidence, ended=time.monotonic()).judge()
        trouble = self._trouble()
        history = self.workload.history
        return Result(
            name, verdict, self._service(direct, end), self._service(through, end), history.errors(), history.closed,
            len(history.ops), self.before, after, self.daemon.log,
            {"fault": self.fault_at, "healed": self.healed_at, "direct": direct, "proxy": through}, self.notes, trouble,
        )  # fmt: skip

    def _service(self, samples: Sequence[Sample], end: float) -> Service:
        healthy = [place for place in range(len(self.workload.tags)) if place not in self.faulty]
        return judge(samples, self.fault_at, self.healed_at, end, healthy)

    def _trouble(self) -> list[str]:
        log = self.daemon.log
        found = [f"the proxy's log has: {word}" for word in ("Traceback", "Sanitizer", "runtime error:") if word in log]
        lost = log.count("worker lost") + log.count("worker is silent")
        if lost > self._workers_killed:
            found.append(f"{lost} workers were lost, {self._workers_killed} of them by us")
        if not self.daemon.alive:
            found.append("the proxy has ended")
        return found

    def _end_proxy(self) -> None:
        self.daemon.signal(signal.SIGTERM)
        with contextlib.suppress(AssertionError, EmbeddedError):
            wait_for(lambda: not self.daemon.alive, 12, "the proxy ends")
        if self.daemon is not self.first_daemon:
            self.daemon.kill()
        self.first_daemon.remove()
