"""/livez and /readyz: the rules, as functions of what is known.

Why: a wrong answer here takes a good proxy out of service or leaves a bad one in it, so the rules stand alone, without
HTTP and processes. Called by proxy.supervisor, whose answer proxy.admin.http gives.

Invariants: the answer is good exactly when there is no reason against it; the details are plain JSON values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from proxy.admin.snapshot import OwnValues

SILENT_S = 5.0  # a worker that has not been heard of for so long does not live
_SLOTS = 16384
_NAMED = 3  # nodes in a reason
_ALL_SILENT_S = 3.0  # a node may be busy for a moment, and answers nobody meanwhile; all of them are not

Verdict = tuple[bool, dict[str, Any]]  # good or not, and what ?verbose shows besides


def liveness(silent_s: Mapping[int, float]) -> Verdict:
    """Whether the main process and every worker's loop answer; that the main process does is shown by the answer.

    silent_s: number of each running or starting worker -> seconds since its last message, or its start before that.
    """
    silent = {number: age_s for number, age_s in sorted(silent_s.items()) if age_s > SILENT_S}
    return not silent, {
        "reasons": [f"worker {number} has not answered for {age_s:.1f} s" for number, age_s in silent.items()],
        "workers": {str(number): {"silent_s": round(age_s, 3)} for number, age_s in sorted(silent_s.items())},
    }


def readiness(own: OwnValues, partial: bool, patience_s: float) -> Verdict:
    """Whether clients should be sent here.

    partial: one slot with a primary is enough, else all must have one. patience_s: for how long commands for a node
    that is down are held; while a part of the nodes is down for less, a failover is waited for and nobody is refused.
    """
    topology = own["topology"]
    reasons = []
    if own["draining"]:
        reasons.append("the proxy is draining")
    elif not own["listening"]:
        reasons.append("the proxy does not listen")
    if not own["workers"]:
        reasons.append("no worker is running")
    if not topology["known"]:
        reasons.append(_because("the topology is not known", topology["error"]))
    else:
        if not topology["fresh"]:
            reasons.append(_because("the topology has not been confirmed lately", topology["error"]))
        covered = topology["slots_covered"]
        if covered < (1 if partial else _SLOTS):
            reasons.append(f"only {covered} of {_SLOTS} slots have a primary" if covered else "no slot has a primary")
        # In a failover they say so for a moment, and what they refuse is held.
        if topology["down_s"] > patience_s:
            reasons.append("the nodes say that the cluster is down")
        reasons += _unreachable(own, partial, patience_s)
    return not reasons, {
        "reasons": reasons,
        "draining": own["draining"],
        "listening": own["listening"],
        "workers": {
            "configured": own["workers_configured"],
            "running": own["workers"],
            "without_primary": own["workers_without_primary"],
            "missed": {str(number): nodes for number, nodes in sorted(own["primaries_missed"].items())},
        },
        "topology": {
            "known": topology["known"],
            "fresh": topology["fresh"],
            "slots_covered": topology["slots_covered"],
            "partial_is_enough": partial,
            "epoch": topology["epoch"],
            "last_success": topology["last_success_s"],
            "last_error": topology["error"],
            "down": round(topology["down_s"], 3),
        },
        "unreachable": {node: round(down_s, 3) for node, down_s in own["owners_down"].items() if down_s},
        "suspected": {node: round(age_s, 3) for node, age_s in own["suspected"].items() if age_s},
        "paused": own["paused"],
    }


def _unreachable(own: OwnValues, partial: bool, patience_s: float) -> list[str]:
    """A node that is paused is worked on: what is for it waits, so that its silence is none."""
    down = own["owners_down"]
    if down and all(down.values()):
        return ["no primary can be reached"]
    silent = {node: 0.0 if node in own["paused"] else age_s for node, age_s in own["suspected"].items()}
    if silent and all(age_s > _ALL_SILENT_S or down.get(node) for node, age_s in silent.items()):
        return ["no primary answers"]
    if partial:
        return []
    late = [node for node, down_s in down.items() if down_s > patience_s]
    mute = [node for node, age_s in silent.items() if age_s > patience_s and node not in late]
    return [
        *_some(late, len(down), "cannot be reached"),
        *_some(mute, len(silent), "do not answer"),
    ]


def _some(nodes: list[str], of: int, how: str) -> Iterator[str]:
    if nodes:
        yield f"{len(nodes)} of {of} primaries {how}: {', '.join(nodes[:_NAMED])}"


def _because(sentence: str, reason: str) -> str:
    return f"{sentence}: {reason}" if reason else sentence
