"""Results as text: a line for the terminal, and docs/chaos.md."""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.machine import commit, describe_machine
from tests.chaos.checker import KINDS
from tests.chaos.stage import Result
from tests.support.cluster import servers

METHOD = """\
# Through failure: what the chaos bench found

Written by `make chaos` (tests/chaos), which plays each scenario against a real cluster of 3 primaries and 3 replicas
(`cluster-node-timeout` 2 s), with a proxy of 2 workers and its default settings. Scenarios are played one after
another, each with a cluster, a proxy and clients of its own.

* **Faults.** Nodes are processes that are killed, stopped and restarted. Each node announces the ports of two faulty
  TCP links, one before its port and one before its bus, and connects from a loopback address of its own; so
  partitions, delay, lost packets, half-open connections and cut bytes can concern one sender and one receiver, also
  between nodes.
* **Clients.** Some 30 connections through the proxy: pipelined RPUSH of unique tokens with ECHO in between, SET and
  GET of registers, MGET and MSET, INCR, MULTI/EXEC, WATCH, EVALSHA, RPUSH and BLPOP of unique elements, streams with
  a consumer group, numbered messages of pub/sub, and readers of a listener with `reads: prefer_replica`. Of each
  operation it is written down when it was sent, when it was answered and with what. None of them tries again what got
  an error.
* **Violations** are what the history and the cluster's contents at the end do not allow: an acknowledged write that
  is lost, anything carried out twice, replies or one client's writes to one key out of order, a read of a primary
  older than what had been acknowledged or read before it began, half of a transaction or script, an operation that
  was answered with an error that means "not carried out" and was, no answer for 8 s, an answer of a former
  primary that comes a second after another took over, and is not true any more (stale node).
* **What the cluster itself loses** by asynchronous replication is told apart by the nodes' own testimony: each writes
  an append-only file before it answers, and the files are kept, also those that a node throws away when it begins
  anew as a replica. An acknowledged write that is missing counts as the cluster's loss only when it stands in the
  file of a primary that fell and in no other node's. If it stands nowhere, or where nobody fell, the proxy lost it.
* **The cluster's own gap** is measured at the same time: one prober writes to the nodes directly, whichever of
  them takes it, another through the proxy, every 20 ms to each shard, both in one process. A gap is the
  time between two writes that were taken. *Back* is the time from the fault to the end of the last gap above 0.25 s
  or of the last error, on whatever shard; 0 means that there was none. A fault that only lies between proxy and nodes
  does not concern the direct prober; a node that is cut off from everybody is out of its reach, too.
* *p99* is that of the probers' writes to the shards without fault, before and during it, in brackets the direct
  one's; some milliseconds of it are the prober's own (Python, on the same cores as everything else).
* *Errors* are what clients were told, by kind; *lost, may be executed* is the error for a write whose connection died
  after it was sent.
* Memory (resident, of all processes of the proxy), and descriptors, with the same clients before and after.
"""


def line(result: Result) -> str:
    """One result in a line."""
    verdict = result.verdict
    bad = ", ".join(f"{kind} {count}" for kind, count in sorted(verdict.counts().items())) or "no violation"
    return (
        f"{result.name}: {bad}; {result.operations} operations; errors {words(result.errors)};"
        f" gap {result.proxy.gap_s:.2f} s (cluster {result.direct.gap_s:.2f}),"
        f" back {result.proxy.back_s:.2f} s (cluster {result.direct.back_s:.2f});"
        f" p99 elsewhere {_healthy(result)};"
        f" closed {words(result.closed)}; probes {words(result.proxy.errors)};"
        f" lost by the cluster {words(verdict.by_cluster)}; messages missed {verdict.missed};"
        f" {result.before} -> {result.after}"
    )


def words(counts: Counter[str]) -> str:
    """As `3 CLUSTERDOWN, 1 closed`; `0` for nothing."""
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common()) or "0"


def document(results: Sequence[Result], about: Mapping[str, str], server: str, seed: int, root: Path) -> str:
    """docs/chaos.md."""
    machine = describe_machine()
    where = [
        ("date", datetime.date.today().isoformat()),
        *((name, value) for name, value in machine.items()),
        ("commit", commit(root)),
        ("Python", platform.python_version()),
        (server, _version(servers()[server])),
        ("seed", str(seed)),
    ]
    lines = [METHOD, "## Where", ""]
    lines += [f"* {name}: {value}" for name, value in where]
    lines += ["", "## What came out", "", _row(_HEAD), _row(["---"] * len(_HEAD))]
    lines += [_row(_cells(result)) for result in results]
    total = Counter[str]()
    for result in results:
        total.update(result.verdict.counts())
    operations = sum(result.operations for result in results)
    by_kind = ", ".join(f"{kind} {total[kind]}" for kind in KINDS)
    lines += ["", f"{operations} operations in all. Violations by kind: {by_kind}.", ""]
    if bad := [result for result in results if not result.good]:
        lines += ["## Violations", ""]
        for result in bad:
            lines += [f"* {result.name}: {kind}: {what}" for kind, what in result.verdict.violations[:5]]
            lines += [f"* {result.name}: {trouble}" for trouble in result.trouble]
        lines += [""]
    lines += ["## Scenarios", ""]
    lines += [f"* **{result.name}**: {about.get(result.name, '')}" for result in results]
    return "\n".join(lines) + "\n"


_HEAD = [
    "scenario", "operations", "errors to clients", "connections closed", "longest gap (cluster's own)",
    "back after (cluster)", "p99 of healthy shards (direct)", "violations", "lost or late by the cluster", "memory",
    "descriptors",
]  # fmt: skip


def _cells(result: Result) -> list[str]:
    direct, proxy, verdict = result.direct, result.proxy, result.verdict
    return [
        result.name,
        str(result.operations),
        words(result.errors),
        words(result.closed),
        f"{proxy.gap_s:.2f} s ({direct.gap_s:.2f})",
        f"{proxy.back_s:.2f} s ({direct.back_s:.2f})",
        _healthy(result),
        words(verdict.counts()),
        words(verdict.by_cluster),
        f"{result.before.memory >> 20} -> {result.after.memory >> 20} MB",
        f"{result.before.descriptors} -> {result.after.descriptors}",
    ]


def _healthy(result: Result) -> str:
    """p99 of writes to shards without fault, before and during, in ms; the direct prober's in brackets."""
    if not result.proxy.p99_during_s:
        return "-"
    proxy, direct = result.proxy, result.direct
    before = f"{proxy.p99_before_s * 1e3:.0f} ({direct.p99_before_s * 1e3:.0f})"
    return f"{before} -> {proxy.p99_during_s * 1e3:.0f} ({direct.p99_during_s * 1e3:.0f}) ms"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _version(server: str) -> str:
    told = subprocess.run([server, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v=([\d.]+)", told)
    return found[1] if found else "unknown"
