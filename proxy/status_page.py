"""The page of `redis-proxy status`: what GET /api/state tells, as text for people.

Why: an operator at a terminal wants to see at once whether the proxy, its workers, its clients and the cluster are
well: what is wrong comes first, in words. Called by proxy.remote. Sans-IO: a mapping in, text out.

Invariants: whatever is missing, as in the answer of another version, is shown as `-`; printable characters only, for
names and errors come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from proxy.cluster.topology import SLOTS


def page(state: Mapping[str, Any], now_s: float) -> str:
    """Lines of text. now_s: Unix time, as are the times of the state (started_s, last_success_s, at_s)."""
    proxy, workers, clients = (_part(state, name) for name in ("proxy", "workers", "clients"))
    topology, reload, upgrade = (_part(state, name) for name in ("topology", "reload", "upgrade"))
    commands = _part(state, "commands")
    known = "known" if topology.get("known") else "not known"
    fresh = "fresh" if topology.get("fresh") else "stale"
    most = _size(clients["max_memory"]) if clients.get("max_memory") else "any"
    lines = [
        f"redis-proxy {_text(proxy, 'version')}, pid {_text(proxy, 'pid')}, up {_since(proxy.get('started_s'), now_s)}"
        + (", draining" if proxy.get("draining") else ""),
        f"  configuration  {_text(proxy, 'source')}",
        f"  listening      {', '.join(map(_plain, proxy.get('listening') or [])) or '-'}",
        f"  admin          {_text(proxy, 'admin')}",
        "",
        *_trouble(proxy, workers, topology, state.get("nodes")),
        "",
        f"workers: {_text(workers, 'running')} of {_text(workers, 'configured')} running,"
        f" {_text(workers, 'restarts')} restarts",
        *_table(("number", "pid", "clients", "silent_s", "lag_s", "leaving"), workers.get("each")),
        "",
        f"clients: {_text(clients, 'connected')} of at most {_text(clients, 'max')}, memory"
        f" {_size(clients.get('memory'))} of {most}",
        f"  rejected       {_counts(clients.get('rejected'))}",
        "",
        f"commands: {_text(commands, 'held')} held until they can be sent, {_text(commands, 'clients_paused')} clients"
        " wait for paused nodes",
        f"  held so far    {_counts(commands.get('holds'))}",
        f"  refused        {_counts(commands.get('refusals'))}",
        "",
        f"topology: {known}, {fresh}, {_text(topology, 'slots_covered')} slots covered, epoch"
        f" {_text(topology, 'epoch')}, learnt {_since(topology.get('last_success_s'), now_s)} ago",
        *_error(topology),
        *_table(("address", "role", "up", "connections", "pending", "held", "connect_failures"), state.get("nodes")),
        "",
        f"reload: {_text(reload, 'attempts')} attempts, the last {_since(reload.get('at_s'), now_s)} ago"
        if reload.get("attempts")
        else "reload: none",
        *_error(reload),
        *(f"  {_plain(fault)}" for fault in reload.get("faults") or []),
        f"upgrade: {_text(upgrade, 'state')}",
        *_error(upgrade),
        f"log: {_text(_part(state, 'log'), 'dropped')} lines dropped",
    ]
    return "\n".join(lines)


def _trouble(
    proxy: Mapping[str, Any], workers: Mapping[str, Any], topology: Mapping[str, Any], nodes: object
) -> list[str]:
    """What somebody who is called at night has to know, the worst first; what is not told is not guessed."""
    found: list[str] = []
    if topology.get("known") is False:
        found.append("no node has told the topology yet")
    elif topology.get("fresh") is False:
        found.append("the topology has not been confirmed lately")
    if topology.get("down_s"):
        found.append(f"the nodes have said for {_age(topology['down_s'])} that the cluster is down")
    covered = topology.get("slots_covered")
    if isinstance(covered, int) and topology.get("known") and covered < SLOTS:
        found.append(f"{SLOTS - covered} slots have no primary")
    rows = [node for node in nodes if isinstance(node, dict)] if isinstance(nodes, list) else []
    for node in sorted(rows, key=lambda row: row.get("role") != "primary"):
        if words := _of_node(node):
            found.append(f"{_text(node, 'role')} {_text(node, 'address')}: {', '.join(words)}")
    each = workers.get("each")
    for worker in each if isinstance(each, list) else ():
        if not isinstance(worker, dict):
            continue
        if worker.get("reaches_primary") is False:
            found.append(f"worker {_text(worker, 'number')} reaches no primary")
        elif isinstance(missed := worker.get("missed"), list) and missed:
            nodes = ", ".join(map(_plain, missed))
            found.append(f"worker {_text(worker, 'number')} does not reach {nodes}, which others do")
    configured, running = workers.get("configured"), workers.get("running")
    if isinstance(configured, int) and isinstance(running, int) and running < configured:
        found.append(f"{configured - running} workers are missing")
    if proxy.get("log_error"):
        found.append(f"the log cannot be written: {_text(proxy, 'log_error')}")
    return ["wrong:", *(f"  {line}" for line in found)] if found else ["wrong: nothing that the proxy knows of"]


def _of_node(node: Mapping[str, Any]) -> list[str]:
    """The silence of a node that is paused is none: it is worked on."""
    words: list[str] = []
    if node.get("paused"):
        words.append("paused by PROXY PAUSE")
    elif node.get("down_s"):
        words.append(f"not reached for {_age(node['down_s'])}")
    elif node.get("suspected_s"):
        words.append(f"no answer to PING for {_age(node['suspected_s'])}")
    if node.get("outdated"):
        words.append("has connections of before the last reload only")
    if node.get("held"):
        words.append(f"{_text(node, 'held')} commands ({_size(node.get('held_bytes'))}) held for it")
    return words


def _part(state: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = state.get(name)
    return found if isinstance(found, dict) else {}


def _plain(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return "".join(one if one.isprintable() else "?" for one in text)


def _text(part: Mapping[str, Any], name: str) -> str:
    return _plain(part.get(name))


def _error(part: Mapping[str, Any]) -> list[str]:
    return [f"  error          {_text(part, 'error')}"] if part.get("error") else []


def _counts(counts: object) -> str:
    found = [f"{_plain(name)} {_plain(n)}" for name, n in counts.items() if n] if isinstance(counts, dict) else []
    return ", ".join(found) or "none"


def _since(then_s: object, now_s: float) -> str:
    """How long ago, in the two largest units: `3d 4h`."""
    return _age(now_s - then_s) if isinstance(then_s, int | float) and then_s else "-"


def _age(seconds: object) -> str:
    """In the two largest units."""
    left = max(int(seconds), 0) if isinstance(seconds, int | float) else 0
    words: list[str] = []
    for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, seconds)
        if count or (unit == "s" and not words):
            words.append(f"{count}{unit}")
    return " ".join(words[:2])


def _size(size: object) -> str:
    if not isinstance(size, int | float):
        return "-"
    for unit, factor in (("gb", 1 << 30), ("mb", 1 << 20), ("kb", 1 << 10)):
        if size >= factor:
            return f"{size / factor:.1f}{unit}"
    return f"{size}b"


def _table(columns: tuple[str, ...], rows: object) -> Iterable[str]:
    """A line of names and one per row, in columns."""
    found = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    if not found:
        return
    lines = [[name.removesuffix("_s").replace("_", " ") for name in columns]]
    lines += [[_plain(row.get(name)) for name in columns] for row in found]
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]
    for line in lines:
        yield "  " + "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
