"""Keeps the topology true: asks one node at a time who holds which slots, and publishes what may be believed.

Why: a proxy is only as good as its slot table, and the peers' worst failures are here: a table learnt once, refreshed
from a node that is behind, from all nodes at once, or never again after an outage (FIELD.md). Called by control_plane
(start, reconfigure, stop, publish callback) and, through trigger(), on every sign of change that a worker reports: a
MOVED, a lost connection, an uncovered slot.

Invariants:
- One task, one connection (but for new seeds, which are all asked at once), one refresh at a time; refreshes start at
  least min_gap_s apart, triggers in between are one refresh.
- A trigger during a refresh causes another one after it: the answer under way may be older than the sign.
- No answer is refused for ever: when nobody has stood for the current topology for gone_after_s, the best refused
  answer is taken, one of another cluster only from a seed (an outage must not last until a restart).
- The seeds say which cluster is ours: when they are changed, they decide anew, and until one of them has spoken the
  known cluster goes on being used and refreshed.
- publish() is called with every accepted answer, changed or not, so that what was learnt from a MOVED meanwhile is put
  right; it must not block.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from proxy.cluster.topology import Address, Topology, TopologyError, Verdict, accept, diff
from proxy.cluster.topology_replies import AddressRules, EndpointChoice, build
from proxy.control.node_client import ErrorReply, NodeAuthError, NodeClientError, NodeClientSettings, node_client
from proxy.control.refresh_pace import RefreshPace
from proxy.control.tasks import keep
from proxy.system.log import get, warn_limited
from proxy.system.names import names

TRIGGERS: Final = ("start", "interval", "retry", "moved", "lost", "uncovered", "silent", "back", "other")
OUTCOMES: Final = ("changed", "unchanged", "refused", "failed")
# An answer is fresh for this many intervals: one may be missed, two say that something is wrong.
_FRESH_INTERVALS: Final = 3.0
_JITTER: Final = 0.2
_FIRST_BACKOFF_S: Final = 0.05
# A node that a partition has cut off says so alone: so many others are asked before it is believed.
_WITNESSES: Final = 2
# ... and where one node hangs, another may: the first few are not waited for as long as they may take.
_HASTY_S: Final = 0.5
_HASTY: Final = 2
# New seeds that do not answer are asked again this much later, then ever less often: each of them may cost a timeout.
_FIRST_SEEDS_PAUSE_S: Final = 0.5
# Seeds come before the rest of the known nodes: after a restart of a whole cluster in Kubernetes all of those are gone,
# each of them a timeout.
_KNOWN_BEFORE_SEEDS: Final = 3
_ERROR_LIMIT: Final = 500

log = get("control.topology_refresh")

Resolve = Callable[[Address], Awaitable[list[Address]]]


@dataclass(frozen=True)
class RefreshSettings:
    """Seconds; timeout_s bounds each attempt at one node as a whole."""

    seeds: tuple[Address, ...]
    refresh_interval_s: float = 30.0
    min_gap_s: float = 0.25
    timeout_s: float = 1.0
    max_backoff_s: float = 2.0
    gone_after_s: float = 5.0
    username: str = ""
    password: str = field(default="", repr=False)
    address_map: Mapping[str, str] = field(default_factory=dict)
    endpoint: EndpointChoice = "announced"


@dataclass(frozen=True)
class _Candidate:
    dial: Address
    asked: Address  # what the node is called in the topology and the log


class TopologyRefresher:
    """See the module. States: idle -> running (start) -> stopped (stop)."""

    def __init__(
        self,
        settings: RefreshSettings,
        publish: Callable[[Topology], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        self.settings = settings
        self.topology: Topology | None = None
        self.outcomes: dict[tuple[str, str], int] = {(t, o): 0 for t in TRIGGERS for o in OUTCOMES}
        self.last_success = 0.0  # Unix time, 0 = never
        self.last_error = ""  # of the last refresh that failed, or of new seeds that do not answer; "" = all is well
        self._publish = publish
        self._clock = clock
        self._rng = rng or random.Random()
        self._resolve = resolve or resolve_address
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._first = asyncio.Event()
        self._pending = ""
        self._fresh_since: float | None = None
        self._failed_at: dict[Address, float] = {}
        self._seed_addresses: set[Address] = set()
        self._without_since: float | None = None
        self._backoff_s = 0.0
        self._pace = RefreshPace(clock)
        self._undecided = False  # the seeds are new, and none of them has said yet which cluster is ours
        self._seeds_pause_s = 0.0
        self._seeds_due = 0.0
        self._seeds_error = ""

    # --- for the control plane

    async def start(self) -> None:
        """Begins with a refresh at once, and returns at once: see ready()."""
        if self._task is None:
            self._begin("start")

    async def stop(self) -> None:
        """Returns when the task and its connection are gone."""
        self._end()
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def ready(self, timeout_s: float) -> bool:
        """Waits for the first accepted topology, at most timeout_s."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._first.wait()
        except TimeoutError:
            return False
        return True

    def trigger(self, reason: str) -> None:
        """Asks for a refresh as soon as min_gap_s allows. Cheap: may be called per request."""
        if not self._pending:
            self._pending = reason
            self._wake.set()

    def follow(self, wanted: bool) -> None:
        """Whether changes that nobody gives a sign of matter: then refreshes are never more than some 2 s apart."""
        if wanted and not self._pace.followed:
            self.trigger("interval")
        self._pace.followed = wanted

    def suspect(self, suspects: frozenset[Address]) -> None:
        """Primaries that may hang: the others are asked again and again, until they say who takes over."""
        if self._pace.suspect(suspects):
            self.trigger("silent")

    def reconfigure(self, settings: RefreshSettings) -> None:
        """New settings, at once: what is under way is given up, and a refresh begins.

        Other seeds decide anew which cluster is ours, and are asked before anybody else.
        """
        if self.topology is not None and set(settings.seeds) != set(self.settings.seeds):
            self._undecided = True
            self._seeds_pause_s = self._seeds_due = 0.0
        self.settings = settings
        self._backoff_s = 0.0
        if self._task is not None:
            self._end()
            self._begin("other")

    @property
    def fresh(self) -> bool:
        """A topology was confirmed within the last three intervals."""
        age_limit = self.settings.refresh_interval_s * _FRESH_INTERVALS
        return self._fresh_since is not None and self._clock() - self._fresh_since < age_limit

    @property
    def down_s(self) -> float:
        """For how many seconds the nodes have said that the cluster is down; 0 = it is not."""
        since = self._pace.down_since
        return 0.0 if since is None else max(self._clock() - since, 1e-9)

    # --- the task

    def _begin(self, trigger: str) -> None:
        self._task = keep(partial(self._run, trigger), "topology-refresh")

    def _end(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _run(self, trigger: str) -> None:
        if self._ending:  # one connection at a time
            await asyncio.wait(self._ending)
        while True:
            started = self._clock()
            outcome = await self._refresh()
            reason = trigger if trigger in TRIGGERS else "other"
            self.outcomes[reason, outcome] += 1
            trigger = await self._next(trigger, outcome, started)

    async def _next(self, trigger: str, outcome: str, started: float) -> str:
        """Waits until the next refresh is due and says why it is."""
        gap_ends = started + self.settings.min_gap_s
        if outcome in ("failed", "refused"):
            # Triggers do not shorten this wait: while nothing answers, every request is a reason.
            self._backoff_s = min(max(self._backoff_s * 2, _FIRST_BACKOFF_S), self.settings.max_backoff_s)
            await asyncio.sleep(max(self._jittered(self._backoff_s), gap_ends - self._clock()))
            return self._take_pending() or "retry"
        self._backoff_s = 0.0
        wait_s = self._jittered(self._interval_s(trigger, outcome))
        if self._undecided:
            wait_s = min(wait_s, max(0.0, self._seeds_due - self._clock()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        while (gap := gap_ends - self._clock()) > 0:
            await asyncio.sleep(gap)
        return self._take_pending() or "interval"

    def _interval_s(self, trigger: str, outcome: str) -> float:
        settled = self.topology is None or self.topology.settled
        usual_s, gap_s = self.settings.refresh_interval_s, self.settings.min_gap_s
        return self._pace.next_s(usual_s, gap_s, settled=settled, changed=outcome == "changed", trigger=trigger)

    def _jittered(self, seconds: float) -> float:
        return seconds * self._rng.uniform(1 - _JITTER, 1 + _JITTER)

    def _take_pending(self) -> str:
        pending, self._pending = self._pending, ""
        self._wake.clear()
        return pending

    # --- one refresh

    async def _refresh(self) -> str:
        """Asks nodes one after the other until one gives an acceptable answer; the outcome."""
        self._take_pending()  # signs seen before the question is asked are answered by it
        refused: list[tuple[_Candidate, Topology, Verdict]] = []
        errors: list[str] = []
        tried: set[Address] = set()
        down: list[Topology] = []  # acceptable, but others are heard first
        self._seed_addresses = set(self.settings.seeds)
        seeds = list(self.settings.seeds)
        if self._undecided and self._clock() >= self._seeds_due:
            if (chosen := await self._decide(errors, tried)) is not None:
                return self._accepted(chosen)
            seeds = []
        for place in self._order(seeds):
            candidates = [place] if isinstance(place, _Candidate) else await self._seed(place, errors)
            for candidate in candidates:
                if {candidate.dial, candidate.asked} & tried:
                    continue
                tried |= {candidate.dial, candidate.asked}
                hasty = down or (self._pace.suspects and len(errors) < _HASTY)
                if (new := await self._answer(candidate, errors, _HASTY_S if hasty else None)) is None:
                    continue
                verdict = accept(self.topology, new)
                if self.topology is None and not new.covered:
                    verdict = Verdict.EMPTY  # another seed may know more
                if verdict is Verdict.ACCEPTED and new.down and len(down) < _WITNESSES:
                    down.append(new)
                elif verdict is Verdict.ACCEPTED:
                    return self._accepted(_newest([*down, new]))
                else:
                    refused.append((candidate, new, verdict))
                    self._report_refusal(candidate, new, verdict)
        return self._accepted(_newest(down)) if down else self._nobody(refused, errors)

    async def _decide(self, errors: list[str], tried: set[Address]) -> Topology | None:
        """Asks all of the new seeds; the answer to be believed, None when there is none.

        One that stands for the known cluster comes before one of another cluster, so that a recycled address in an
        otherwise good list leads nowhere; then the order of the list counts.
        """
        answers: dict[int, Topology] = {}

        async def ask(place: int, seed: Address) -> None:
            for candidate in await self._seed(seed, errors):
                tried.update((candidate.dial, candidate.asked))
                if (new := await self._answer(candidate, errors)) is not None:
                    answers.setdefault(place, new)

        async with asyncio.TaskGroup() as group:
            for place, seed in enumerate(self.settings.seeds):
                group.create_task(ask(place, seed))
        found = [(answers[place], accept(self.topology, answers[place])) for place in sorted(answers)]
        for new, verdict in found:
            if verdict is Verdict.ACCEPTED:
                self._decided()
                return new
        if any(verdict is Verdict.STALE for _, verdict in found):
            self._decided()  # for the known cluster, of which somebody else knows more
            return None
        for new, _ in found:
            if new.covered:
                self._decided()
                log.warning("the new seeds belong to another cluster, which is used from now on", asked=new.asked)
                return new
        errors += [f"{new.asked}: knows of no slots" for new, _ in found]
        why = "; ".join(errors)
        self._seeds_error = f"the seeds yield no node: {why}"[:_ERROR_LIMIT]
        warn_limited(log, "seeds", "the new seeds yield no node, the known cluster stays in use", error=why)
        self._seeds_pause_s = min(max(2 * self._seeds_pause_s, _FIRST_SEEDS_PAUSE_S), self.settings.refresh_interval_s)
        self._seeds_due = self._clock() + self._seeds_pause_s
        return None

    def _decided(self) -> None:
        self._undecided = False
        self._seeds_error = ""

    def _order(self, seeds: list[Address]) -> list[_Candidate | Address]:
        """Known nodes in random order, those that failed last; after the first few the seeds, to be resolved then."""
        known = list(self.topology.nodes()) if self.topology is not None else []
        self._rng.shuffle(known)
        recently = self._clock() - self.settings.refresh_interval_s
        self._failed_at = {address: at for address, at in self._failed_at.items() if at > recently}
        suspects, failed_at = self._pace.suspects, self._failed_at
        known.sort(key=lambda node: (node.health == "fail" or node.address in suspects, node.address in failed_at))
        nodes = [_Candidate(node.address, node.address) for node in known]
        self._rng.shuffle(seeds)
        seeds.sort(key=lambda seed: seed in self._pace.suspects)
        return [*nodes[:_KNOWN_BEFORE_SEEDS], *seeds, *nodes[_KNOWN_BEFORE_SEEDS:]]

    async def _seed(self, seed: Address, errors: list[str]) -> list[_Candidate]:
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                found = list(await self._resolve(seed))
        except OSError as error:  # TimeoutError is one
            reason = str(error) or "no answer in time"
            errors.append(f"{seed}: {reason}")
            _warn("unresolved", "seed cannot be resolved", seed, error=reason)
            return []
        self._seed_addresses |= set(found)
        self._rng.shuffle(found)
        # A name of several addresses is several nodes, so each goes by its address; else by the name, which is resolved
        # again when the address changes.
        return [_Candidate(address, seed if len(found) == 1 else address) for address in found]

    async def _answer(
        self, candidate: _Candidate, errors: list[str], timeout_s: float | None = None
    ) -> Topology | None:
        try:
            new = await self._ask(candidate, min(timeout_s or self.settings.timeout_s, self.settings.timeout_s))
        except (NodeClientError, TopologyError) as error:
            errors.append(f"{candidate.asked}: {error}")
            self._report(candidate, error)
        except Exception as error:
            log.exception("asking a node for the topology failed", node=candidate.asked)
            errors.append(f"{candidate.asked}: {error!r}")
        else:
            self._failed_at.pop(candidate.dial, None)
            return new
        return None

    async def read_by(self, rules: AddressRules) -> Topology | None:
        """The known cluster as it would be read by other rules, told by one of its nodes; None = by none. Nothing is
        changed by it."""
        known = self.topology.nodes() if self.topology is not None else ()
        for node in sorted(known, key=lambda node: node.health == "fail")[:_WITNESSES]:
            with contextlib.suppress(NodeClientError, TopologyError):
                return await self._ask(_Candidate(node.address, node.address), _HASTY_S, rules)
        return None

    async def _ask(self, candidate: _Candidate, timeout_s: float, rules: AddressRules | None = None) -> Topology:
        """rules: None = those in force."""
        settings = self.settings
        upstream = NodeClientSettings(settings.username, settings.password, timeout_s)
        try:
            async with asyncio.timeout(timeout_s), node_client(candidate.dial, upstream) as node:
                # One pipeline, so that the three speak of the same moment.
                info, shards, nodes = await node.ask(("CLUSTER", "INFO"), ("CLUSTER", "SHARDS"), ("CLUSTER", "NODES"))
                slots = None
                if shards == [] or (isinstance(shards, ErrorReply) and "disabled" not in str(shards)):
                    # Redis before 7 has no SHARDS.
                    (slots,) = await node.ask(("CLUSTER", "SLOTS"))
        except TimeoutError as error:
            raise NodeClientError(f"{candidate.dial} does not answer in time") from error
        rules = rules or AddressRules(settings.endpoint, settings.address_map)
        # In a thread: a large cluster takes tens of milliseconds, and the loop has clients to accept meanwhile.
        return await asyncio.to_thread(
            build, candidate.asked, rules, shards=shards, slots=slots, nodes=nodes, info=info
        )

    def _accepted(self, new: Topology) -> str:
        old, self.topology = self.topology, new
        changes = diff(old, new)
        self._without_since = None
        self.last_success = time.time()
        self._fresh_since = self._clock()
        self.last_error = self._seeds_error
        if changes:
            log.info("topology changed", what=changes, epoch=new.epoch, covered=new.covered, asked=new.asked)
        if self._pace.took(new):
            text = f"the nodes say that the cluster {'is down' if new.down else 'works again'}"
            log.warning(text, asked=new.asked)
        try:
            self._publish(new)
        except Exception as error:
            log.exception("publishing the topology failed")
            self.last_error = f"publishing failed: {error!r}"
            return "failed"
        self._first.set()
        return "changed" if changes else "unchanged"

    def _nobody(self, refused: list[tuple[_Candidate, Topology, Verdict]], errors: list[str]) -> str:
        """No acceptable answer: the best of the refused ones when there is nobody left to wait for."""
        now = self._clock()
        if self._without_since is None:
            self._without_since = now
        gone = self.topology is None or now - self._without_since >= self.settings.gone_after_s
        # An address that was recycled is no authority on which cluster is ours; the seeds are, where they are now.
        usable = [
            (verdict is not Verdict.OTHER_CLUSTER, new.covered > 0, new.epoch, new)
            for candidate, new, verdict in refused
            if verdict is not Verdict.OTHER_CLUSTER
            or (self._is_seed(candidate) and not names.overdue(candidate.dial.host))
        ]
        if gone and usable:
            best = max(usable, key=lambda entry: entry[:3])[3]
            if self.topology is not None:
                log.warning("nobody stands for the known topology any more, another is taken", asked=best.asked)
            return self._accepted(best)
        refusals = [f"{candidate.asked}: refused, {verdict.value}" for candidate, _, verdict in refused]
        self.last_error = "; ".join([*errors, *refusals])[:_ERROR_LIMIT] or "no seeds"
        return "refused" if refused else "failed"

    def _is_seed(self, candidate: _Candidate) -> bool:
        return bool({candidate.dial, candidate.asked} & self._seed_addresses)

    # --- the log

    def _report(self, candidate: _Candidate, error: Exception) -> None:
        self._failed_at[candidate.dial] = self._clock()
        seed = "seed" if self._is_seed(candidate) else "node"
        if isinstance(error, NodeAuthError):
            kind, text = "auth", f"{seed} refuses the upstream credentials"
        elif isinstance(error, TopologyError) and error.not_a_cluster:
            kind, text = "not-a-cluster", f"{seed} is not a cluster node"
        elif isinstance(error, TopologyError):
            kind, text = "no-topology", f"{seed} does not tell the topology"
        else:
            kind, text = "unreachable", f"{seed} is unreachable"
        _warn(kind, text, candidate.asked, error=str(error))

    def _report_refusal(self, candidate: _Candidate, new: Topology, verdict: Verdict) -> None:
        match verdict:
            case Verdict.OTHER_CLUSTER:
                text = "answer of another cluster refused"
            case Verdict.STALE:
                text = "answer of a node that is behind refused"
            case _:
                text = "node knows of no slots"
        _warn(verdict.value, text, candidate.asked, epoch=new.epoch)


def _newest(answers: list[Topology]) -> Topology:
    """Of the highest epoch, and then one that does not say that the cluster is down."""
    return max(answers, key=lambda new: (new.epoch, not new.down))


def _warn(kind: str, text: str, node: Address, **fields: object) -> None:
    warn_limited(log, f"topology-{kind}:{node}", text, node=node, **fields)


async def resolve_address(address: Address) -> list[Address]:
    """Every address of the name, in the resolver's order; itself when it is none. OSError when it does not resolve."""
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        found = await names.resolve(address.host, address.port)
        return list(dict.fromkeys(Address(str(where[0]), address.port) for _, where in found))
    return [address]
