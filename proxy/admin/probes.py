"""/livez and /readyz: the rules, as functions of what is known.

Why: a wrong answer here takes a good proxy out of service or leaves a bad one in it, so the rules stand alone, without
HTTP and processes. Called by proxy.supervisor, whose answer proxy.admin.http gives.

Invariants: the answer is good exactly when there is no reason against it; the details are plain JSON values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.admin.snapshot import OwnValues

SILENT_S = 5.0  # a worker that has not been heard of for so long does not live
_SLOTS = 16384
_NAMED = 3  # nodes in a reason

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
        reasons += _unreachable(own["owners_down"], partial, patience_s)
    return not reasons, {
        "reasons": reasons,
        "draining": own["draining"],
        "listening": own["listening"],
        "workers": {"configured": own["workers_configured"], "running": own["workers"]},
        "topology": {
            "known": topology["known"],
            "fresh": topology["fresh"],
            "slots_covered": topology["slots_covered"],
            "partial_is_enough": partial,
            "epoch": topology["epoch"],
            "last_success": topology["last_success_s"],
            "last_error": topology["error"],
        },
        "unreachable": {node: round(down_s, 3) for node, down_s in own["owners_down"].items() if down_s},
    }


def _unreachable(owners: Mapping[str, float], partial: bool, patience_s: float) -> list[str]:
    if owners and all(owners.values()):
        return ["no primary can be reached"]
    late = [] if partial else [node for node, down_s in owners.items() if down_s > patience_s]
    return [f"{len(late)} of {len(owners)} primaries cannot be reached: {', '.join(late[:_NAMED])}"] if late else []


def _because(sentence: str, reason: str) -> str:
    return f"{sentence}: {reason}" if reason else sentence
