"""What clients did and what they were told: the record that tests.chaos.checker judges.

An operation is known by its token, which no other one has: whatever holds the token later (a list, an append-only file,
a reply) says that it was carried out. Times are time.monotonic() in seconds, the same in all processes.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

OK, ERROR, UNKNOWN = "ok", "error", "unknown"
# What does not say that nothing was carried out. The rest of the errors does.
UNSURE = ("may have been executed", "UNBLOCKED")
# Kinds of operations; see tests.chaos.workload for what each of them does.
PUSH, ADD, SET, GET, INCR, POP, DELIVER, ECHO, PAIR, OTHER = (
    "push", "add", "set", "get", "incr", "pop", "deliver", "echo", "pair", "other",
)  # fmt: skip
READS = (GET, PAIR, ECHO)


@dataclass(slots=True)
class Op:
    """One operation. answered: math.inf while there is no answer. reply: meaning depends on the kind; error: its line.

    A command of several slots whose error may concern one part only is `unsure`.
    """

    client: str
    kind: str
    key: str
    token: str
    invoked: float
    answered: float = math.inf
    outcome: str = UNKNOWN
    reply: Any = None
    error: str = ""
    number: int = 0  # its place among what its client did with this key
    limit_s: float = 0.0  # how long it may wait on purpose (BLPOP's timeout)
    replicas: bool = False  # may be served by a replica, which may be behind

    def answer(self, reply: Any, at: float) -> None:
        self.answered, self.outcome, self.reply = at, OK, reply

    def fail(self, error: str, at: float, *, unsure: bool = False) -> None:
        self.answered, self.error = at, error
        self.outcome = UNKNOWN if unsure or any(word in error for word in UNSURE) else ERROR


@dataclass(slots=True)
class Message:
    """A message that a subscriber got; publisher's own count."""

    subscriber: str
    connection: int
    channel: str
    number: int
    at: float


@dataclass
class History:
    """Everything of one run."""

    ops: list[Op] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)  # replies to nothing
    seen_by_nodes: list[Message] = field(default_factory=list)  # what subscribers of single nodes got, without a proxy
    published: dict[str, set[int]] = field(default_factory=dict)  # channel -> the numbers that were answered
    closed: Counter[str] = field(default_factory=Counter)  # connections that the proxy ended, in words

    def errors(self) -> Counter[str]:
        """Errors by kind, as a client would sort them."""
        found: Counter[str] = Counter()
        for op in self.ops:
            if op.error:
                where = " (read, prefer_replica)" if op.replicas else " (read)" if op.kind in READS else ""
                found[kind_of(op.error) + where] += 1
        return found


def kind_of(error: str) -> str:
    """A few words for an error line."""
    if "may have been executed" in error:
        return "timed out, may be executed" if "timed out" in error else "lost, may be executed"
    if "timed out" in error:
        return "timed out"
    word = error.split(" ", 1)[0]
    if word == "ERR":
        return error[4:60]
    return word


@dataclass(frozen=True)
class Fall:
    """A primary that stopped being one. at: when the fault began; until: when another took over, or it was back."""

    node: str
    at: float
    until: float
