"""Judges a history: what was lost, doubled, answered out of order, stale or torn, and whose fault it is.

Called by tests.chaos.stage after each scenario, and by test_checker with histories that must be found guilty. Knows
nothing of proxies and nodes: operations, messages, what the cluster holds at the end, and the evidence of who carried
out what (tests.chaos.evidence). Kinds of violations:

    lost        an acknowledged write is not there, and the cluster did not lose it
    doubled     one operation was carried out twice, or one element given to two consumers
    order       a reply that belongs to another command, or one client's writes to one key out of order
    stale       a read of a primary that does not show what had been acknowledged, or been read, before it began
    torn        half of a transaction, of a script, or of a pair that is only ever changed together
    refused     an operation that was answered with an error that means "not carried out", and was
    unanswered  no answer within the proxy's longest timeout and a margin
    stale node  a former primary's answer reached a client long after another node had taken over (a write that is then
                lost, an element that somebody else gets): from a node that the proxy knew to be replaced
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from tests.chaos.evidence import Evidence
from tests.chaos.history import ADD, DELIVER, ECHO, ERROR, GET, INCR, OK, PAIR, POP, PUSH, SET, UNKNOWN, History, Op
from tests.chaos.workload import Contents

KINDS = ("lost", "doubled", "order", "stale", "torn", "refused", "unanswered", "stale node")
ANSWER_S = 8.0  # requests.timeout is 5 s; a noisy machine has the rest
HELD_BACK_S = 0.1  # a message that a node has so much later than another one was held back between them
TAKEN_OVER_S = 1.0  # after a new primary takes writes: how long the proxy may still believe the old one
# Keys by the last word of their name: (keys whose values must be equal, list that must be as long).
TOGETHER = ((("t1", "t2"), "tlog"), (("s1", "s2"), "slog"), (("watched",), "wlog"))


@dataclass
class Verdict:
    """violations: (kind, what) pairs; by_cluster: what the cluster itself lost, in the same words; missed: messages."""

    violations: list[tuple[str, str]] = field(default_factory=list)
    by_cluster: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    missed: int = 0

    def counts(self) -> Counter[str]:
        return Counter(kind for kind, _ in self.violations)


class Checker:
    """One judgement: judge() looks at everything."""

    def __init__(self, history: History, contents: Contents, evidence: Evidence, *, ended: float = math.inf) -> None:
        self.history = history
        self.contents = contents
        self.evidence = evidence
        self.ended = ended
        self.verdict = Verdict()
        self._ops: dict[str, list[Op]] = defaultdict(list)
        for op in history.ops:
            self._ops[op.kind].append(op)
            self.verdict.checked[op.kind] += 1

    def judge(self) -> Verdict:
        self.tokens(PUSH, self.contents.lists)
        self.tokens(ADD, self.contents.streams)
        self.counters()
        self.registers()
        self.pairs()
        self.together()
        self.echoes()
        self.deliveries()
        self.messages()
        self.answers()
        return self.verdict

    def guilty(self, kind: str, what: str) -> None:
        self.verdict.violations.append((kind, what))

    # -- each kind of operation

    def tokens(self, kind: str, held: dict[str, list[str]]) -> None:
        """Lists and streams: each token as often as it was answered, in its client's order."""
        popped = {op.reply for op in self._ops[POP] if op.outcome == OK and op.reply}
        queues = {op.key for op in self._ops[POP]}
        places = {key: {token: place for place, token in enumerate(tokens)} for key, tokens in held.items()}
        found = {key: Counter(tokens) for key, tokens in held.items()}
        maybe = self._vanished_pops()
        for op in self._ops[kind]:
            times = found.get(op.key, Counter())[op.token]
            if op.key in queues and op.token in popped:
                times += 1
                if times > 1 and self._lost_pop(op.token):
                    times = 1
            if times > 1:
                self.guilty("doubled", f"{op.token} is there {times} times")
            elif times and op.outcome == ERROR:
                self.guilty("refused", f"{op.token} was answered {op.error!r}, and is there")
            elif not times and op.outcome == OK:
                if op.key in queues and maybe[op.key] > 0:
                    maybe[op.key] -= 1  # popped for a client whose connection was lost
                else:
                    self._missing(op)
        for client_key, ops in _grouped(self._ops[kind], lambda op: (op.client, op.key)).items():
            sure = [places.get(op.key, {}).get(op.token, -1) for op in ops if op.outcome == OK]
            there = [place for place in sure if place >= 0]
            for earlier, later in pairwise(there):
                if later < earlier:
                    self.guilty("order", f"{client_key}: places {earlier} and {later} are the wrong way round")

    def _missing(self, op: Op) -> None:
        fall = self.evidence.lost_by_cluster(op.token)
        if fall is None:
            where = sorted(self.evidence.nodes_with(op.token)) or "no node"
            self.guilty("lost", f"{op.token}, answered at {op.answered:.3f}, carried out by {where}")
        elif op.answered > fall.until + TAKEN_OVER_S:
            sent, late = op.invoked - fall.until, op.answered - fall.until
            self.guilty("stale node", f"{op.token}, sent {sent:.1f} s and answered {late:.1f} s after the takeover")
        else:
            self.verdict.by_cluster["writes"] += 1

    def _vanished_pops(self) -> Counter[str]:
        """Pops of which nobody knows what they took, by key: each may have taken one element."""
        return Counter(op.key for op in self._ops[POP] if op.outcome == UNKNOWN)

    def _lost_pop(self, token: str) -> bool:
        """An element that was popped, and is there again since a replica that did not know took over."""
        times = [op.answered for op in self._ops[POP] if op.reply == token]
        if any(fall.at - 2.0 <= min(times) <= fall.until + TAKEN_OVER_S for fall in self.evidence.falls):
            self.verdict.by_cluster["pops"] += 1
            return True
        return False

    def counters(self) -> None:
        """INCR: every answered value once; the final value no more than what was answered or is unknown."""
        for key, ops in _grouped(self._ops[INCR], lambda op: op.key).items():
            values = [op.reply for op in ops if op.outcome == OK]
            unknown = sum(op.outcome == UNKNOWN for op in ops)
            final = int(self.contents.strings.get(key, 0))
            fallen = self.evidence.increments(key)
            for value, times in Counter(values).items():
                lost = times - 1 if value <= final else times
                if not lost:
                    continue
                if value <= fallen:
                    self.verdict.by_cluster["increments"] += lost
                else:
                    self.guilty("lost", f"{key}: {value} was answered {times} times, the end is {final}")
            unanswered = final - len({value for value in values if value <= final})
            if unanswered > unknown:
                self.guilty("doubled", f"{key} is {final}: {unanswered} INCRs without answer, {unknown} may be")
            last: dict[str, int] = {}
            for op in ops:
                if op.outcome == OK and op.reply <= last.get(op.client, 0) and op.reply > fallen:
                    self.guilty("order", f"{key}: {op.client} got {op.reply} after {last[op.client]}")
                if op.outcome == OK:
                    last[op.client] = op.reply

    def registers(self) -> None:
        """Reads of what one client alone writes: not older than what was acknowledged or read before they began."""
        writes, reads = (_grouped(self._ops[kind], lambda op: op.key) for kind in (SET, GET))
        for key, found in reads.items():
            mine = writes.get(key, [])
            by_number = {op.number: op for op in mine}
            known = sorted((op.answered, op.number) for op in mine if op.outcome == OK)
            strict = [op for op in found if op.outcome == OK and not op.replicas]
            known += [(op.answered, op.reply) for op in strict if by_number.get(op.reply)]
            known.sort()
            times = [at for at, _ in known]
            highest: list[int] = []
            for _, number in known:
                highest.append(max(number, highest[-1] if highest else 0))
            for op in found:
                if op.outcome == OK:
                    place = bisect_left(times, op.invoked)
                    self._judge_read(op, highest[place - 1] if place else 0, by_number)

    def _judge_read(self, op: Op, floor: int, writes: dict[int, Op]) -> None:
        """floor: the highest number that was known when the read began."""
        if op.reply is None:
            self.guilty("order", f"{op.client}: GET {op.key} gave what is no register")
            return
        source = writes.get(op.reply)
        if op.reply and (source is None or source.invoked > op.answered):
            self.guilty("order", f"{op.client}: GET {op.key} gave {op.reply}, which nobody had written")
        elif source is not None and source.outcome == ERROR:
            self.guilty("refused", f"{source.token} was answered {source.error!r}, and {op.client} read it")
        elif op.reply < floor and not op.replicas:
            if source is not None and source.outcome == UNKNOWN:
                return  # what may have been executed may have been so late
            between = [writes[number] for number in range(op.reply + 1, floor + 1) if number in writes]
            shown = [write for write in between if write.outcome == OK or write.number == floor]
            if shown and all(self.evidence.lost_by_cluster(write.token) for write in shown):
                self.verdict.by_cluster["registers"] += 1
            else:
                self.guilty("stale", f"{op.client} read {op.reply} of {op.key} at {op.invoked:.3f}, {floor} was known")

    def pairs(self) -> None:
        """Both keys of a pair, read at once by one command or transaction, are equal."""
        for op in self._ops[PAIR]:
            if op.outcome == OK and op.reply is not None and op.reply[0] != op.reply[1] and not op.replicas:
                self.guilty("torn", f"{op.client} read {op.reply} of {op.key}")

    def together(self) -> None:
        """At the end: counters that transactions and scripts change together with a list."""
        strings, lists = self.contents.strings, self.contents.lists
        for names, log in TOGETHER:
            for key in [key for key in lists if key.rpartition(":")[2] == log]:
                prefix = key.rpartition(":")[0]
                values = [int(strings.get(f"{prefix}:{name}", 0)) for name in names]
                if any(value != len(lists[key]) for value in values):
                    self.guilty("torn", f"{prefix}: {names} are {values}, and {log} has {len(lists[key])}")

    def echoes(self) -> None:
        for op in self._ops[ECHO]:
            if op.outcome == OK and op.reply != op.token:
                self.guilty("order", f"{op.client}: ECHO {op.token} gave {str(op.reply)[:80]!r}")

    def deliveries(self) -> None:
        """An element or entry goes to one consumer."""
        for kind in (POP, DELIVER):
            given: dict[str, Op] = {}
            for op in self._ops[kind]:
                if op.outcome != OK or not op.reply:
                    continue
                for token in op.reply if kind == DELIVER else [op.reply]:
                    if token not in given:
                        given[token] = op
                        continue
                    first, second = sorted((given[token], op), key=lambda op: op.answered)
                    if self._forgotten(first, second):
                        self.verdict.by_cluster["deliveries"] += 1
                    elif self._late(first) or self._late(second):
                        what = f"{token} went to {first.client} and to {second.client}, once long after the takeover"
                        self.guilty("stale node", what)
                    else:
                        self.guilty("doubled", f"{token} went to {first.client} and to {second.client}")

    def _forgotten(self, first: Op, second: Op) -> bool:
        """A primary fell after the first delivery and before the second, and may not have replicated the first."""
        return any(
            fall.at - 2.0 <= first.answered <= fall.until + TAKEN_OVER_S and second.answered > fall.at
            for fall in self.evidence.falls
        )

    def _late(self, op: Op) -> bool:
        """It was with a primary that fell, and was answered long after another had taken over."""
        return any(op.invoked < fall.until and op.answered > fall.until + TAKEN_OVER_S for fall in self.evidence.falls)

    def messages(self) -> None:
        """Published numbers ascend for each subscriber; those that never came are counted.

        Nodes pass messages on over their bus, and what a link between them held back comes late: a node may then give
        out old messages after new ones, also such as a subscriber had from another node before. So one subscriber of
        each node itself is listened to as well.
        """
        late = self._late_at_nodes()
        last: dict[tuple[str, str], int] = {}
        got: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        at_nodes: dict[tuple[str, int], list[float]] = defaultdict(list)
        for message in self.history.seen_by_nodes:
            at_nodes[message.channel, message.number].append(message.at)
        for message in self.history.messages:
            key = (message.subscriber, message.channel)
            first = got[key].setdefault(message.number, message.at)
            # A node had it well after another one, from which the subscriber had it: whoever has moved has both.
            held_back = any(
                first + HELD_BACK_S < at < message.at + 1 for at in at_nodes[message.channel, message.number]
            )
            if message.number <= last.get(key, 0) and (
                held_back or late.get((message.channel, message.number), 0) >= last[key]
            ):
                self.verdict.by_cluster["messages late"] += 1
            elif message.number <= last.get(key, 0):
                kind = "doubled" if message.number == last[key] else "order"
                self.guilty(kind, f"{message.subscriber} got {message.number} of {message.channel} after {last[key]}")
            last[key] = max(message.number, last.get(key, 0))
        for (_, channel), numbers in got.items():
            wanted = {number for number in self.history.published.get(channel, set()) if number > min(numbers)}
            self.verdict.missed += len(wanted - numbers.keys())
        self.verdict.checked["message"] = len(self.history.messages)

    def _late_at_nodes(self) -> dict[tuple[str, int], int]:
        """(channel, number) of messages that came late at some node -> the highest number that had come there."""
        late: dict[tuple[str, int], int] = {}
        highest: dict[tuple[str, str], int] = {}
        for message in self.history.seen_by_nodes:
            key = (message.subscriber, message.channel)
            before = highest.get(key, 0)
            if message.number <= before:
                found = (message.channel, message.number)
                late[found] = max(late.get(found, 0), before)
            highest[key] = max(before, message.number)
        return late

    def answers(self) -> None:
        for strange in self.history.strange:
            self.guilty("order", strange)
        for op in self.history.ops:
            waited = min(op.answered, self.ended) - op.invoked - op.limit_s
            if waited > ANSWER_S:
                self.guilty("unanswered", f"{op.client}: {op.kind} {op.key} for {waited:.1f} s")


def _grouped(ops: list[Op], key: Callable[[Op], object]) -> dict[object, list[Op]]:  # type: ignore[type-arg]
    found: dict[object, list[Op]] = defaultdict(list)
    for op in ops:
        found[key(op)].append(op)
    return found
