"""What the primaries' INFO documents come to together: one server's figures, sane for those who read INFO.

Called by serve.info with the documents of the primaries that answered. What becomes of a field:

| fields | the one figure |
|---|---|
| whole numbers, unless named below (used_memory, keyspace_hits, expired_keys, master_repl_offset ...) | their sum |
| `*_kbps`, `used_cpu_*`, `used_active_time_*` | their sum |
| `*_human` | of the merged figure |
| `*_ratio`, `used_memory_peak_perc`, `used_memory_dataset_perc` | of the merged figures they are ratios of |
| other percentages, durations (`*_time_sec` ...), times, flags (loading, `*_in_progress` ...) | the greatest |
| maxmemory | the sum; 0 (no limit) when one has none |
| aof_enabled | the least: 1 when all have it |
| `*_status` | `ok` when all are |
| texts (maxmemory_policy, mem_allocator ...) | the first primary's |
| db0 ... of Keyspace | sums; avg_ttl: the mean, weighted with the keys that expire |
| cmdstat_* | sums; usec_per_call of these |
| errorstat_* | sums, without MOVED, ASK and TRYAGAIN, which no client of the proxy sees |
| latency_percentiles_usec_* | the greatest: no percentile of all can be had from theirs, this is a bound |
| module | the first primary's |

Invariants: nothing here raises over what a server sent, a line that is not what it should be is left out; nothing is
made up for a server that did not answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

Fields = dict[str, str]
Number = int | float

# name in the server's document, lower case -> its lines
Document = dict[str, list[str]]

_GREATEST: Final = frozenset(
    {
        "loading",
        "async_loading",
        "aof_rewrite_scheduled",
        "rdb_last_save_time",
        "latest_fork_usec",
        "active_defrag_running",
        "current_cow_size_age",
        "current_eviction_exceeded_time",
        "current_active_defrag_time",
        "repl_backlog_active",
        "second_repl_offset",
        "instantaneous_eventloop_duration_usec",
        "loading_start_time",
        "loading_eta_seconds",
    }
)
_GREATEST_BY_SUFFIX: Final = ("_time_sec", "_perc", "_in_progress")
_SUMS_OF_FRACTIONS: Final = re.compile(r".*_kbps|used_cpu_.*|used_active_time_.*")
_RATIOS: Final = {
    "mem_fragmentation_ratio": ("used_memory_rss", "used_memory"),
    "allocator_frag_ratio": ("allocator_active", "allocator_allocated"),
    "allocator_rss_ratio": ("allocator_resident", "allocator_active"),
    "rss_overhead_ratio": ("used_memory_rss", "allocator_resident"),
}
_NOT_THE_CLIENTS: Final = frozenset({"MOVED", "ASK", "TRYAGAIN"})


def human(size: int) -> str:
    """A size in bytes the way INFO's *_human fields spell it (Redis's bytesToHuman)."""
    if size < 1024:
        return f"{size}B"
    power = min((size.bit_length() - 1) // 10, 5)
    return f"{size / 1024**power:.2f}{'KMGTP'[power - 1]}"


def parse(text: str) -> Document:
    """The document by sections; what is before the first is left out."""
    found: Document = {}
    lines: list[str] = []
    for line in text.split("\r\n"):
        if line.startswith("# "):
            lines = found.setdefault(line[2:].strip().lower(), [])
        elif ":" in line:
            lines.append(line)
    return found


def fields(document: Document, section: str) -> Fields:
    """The fields of a section; {} without it."""
    return {name: value for name, _, value in (line.partition(":") for line in document.get(section, ()))}


def merged(documents: Sequence[Document], section: str) -> Fields:
    """The fields of a section of figures (Memory, Persistence, Stats, Replication, CPU), in the first one's order."""
    told = [fields(document, section) for document in documents]
    names = dict.fromkeys(name for one in told for name in one)
    made: Fields = {}
    for name in names:
        values = [one[name] for one in told if name in one]
        if name.endswith("_human"):
            base = made.get(name.removesuffix("_human"), "")
            values = [human(int(base))] if base.isdigit() else []
        if values:
            made[name] = _merged(name, values, made)
    return made


def modules(documents: Sequence[Document]) -> list[str]:
    """The lines of Modules: the same on all primaries, or what the first has."""
    return documents[0].get("modules", []) if documents else []


def keyspace(documents: Sequence[Document]) -> Fields:
    """dbN -> keys=...,expires=...,avg_ttl=... and what newer servers add, in the order of the databases."""
    found: dict[str, dict[str, int]] = {}
    for document in documents:
        for db, value in fields(document, "keyspace").items():
            figures = _integers(value)
            if not re.fullmatch(r"db\d+", db) or "keys" not in figures:
                continue
            total = found.setdefault(db, {})
            expires, ttl = figures.get("expires", 0), figures.get("avg_ttl", 0)
            for name, number in figures.items():
                total[name] = total.get(name, 0) + (number if name != "avg_ttl" else ttl * expires)
    for total in found.values():
        if "avg_ttl" in total:
            total["avg_ttl"] //= max(1, total.get("expires", 0))
    return {db: _spelt(found[db]) for db in sorted(found, key=lambda db: int(db[2:]))}


def keys_of(document: Document) -> int:
    """Keys in all databases of one server."""
    return sum(_integers(value).get("keys", 0) for value in fields(document, "keyspace").values())


def commandstats(documents: Sequence[Document]) -> Fields:
    """cmdstat_* -> calls=...,usec=...,usec_per_call=...,rejected_calls=...,failed_calls=..."""
    made = {}
    for name, total in _sums(documents, "commandstats", "cmdstat_").items():
        calls, usec = total.pop("calls", 0), total.pop("usec", 0)
        head = f"calls={calls},usec={usec},usec_per_call={usec / calls if calls else 0:.2f}"
        made[name] = f"{head},{_spelt(total)}" if total else head
    return made


def errorstats(documents: Sequence[Document]) -> Fields:
    """errorstat_* -> count=..."""
    told = _sums(documents, "errorstats", "errorstat_")
    return {
        name: f"count={total.get('count', 0)}"
        for name, total in told.items()
        if name.removeprefix("errorstat_") not in _NOT_THE_CLIENTS
    }


def latencystats(documents: Sequence[Document]) -> Fields:
    """latency_percentiles_usec_* -> p50=...,p99=...,p99.9=..., in microseconds."""
    found: dict[str, dict[str, float]] = {}
    for document in documents:
        for name, value in fields(document, "latencystats").items():
            total = found.setdefault(name, {})
            for percentile, number in _pairs(value):
                total[percentile] = max(total.get(percentile, 0.0), number)
    return {name: ",".join(f"{p}={n:.3f}" for p, n in total.items()) for name, total in found.items()}


# -- one field ---------------------------------------------------------------------------------------------------------


def _merged(name: str, values: list[str], made: Fields) -> str:
    """Of one field; made: the fields before it, merged."""
    if name.endswith("_status"):
        return next((value for value in values if value != "ok"), "ok")
    if name in _RATIOS:
        part, whole = (_integer(made.get(of, "")) for of in _RATIOS[name])
        return f"{part / whole:.2f}" if whole > 0 else "0.00"
    if name == "used_memory_peak_perc":
        return _percentage(_integer(made.get("used_memory", "")), _integer(made.get("used_memory_peak", "")))
    if name == "used_memory_dataset_perc":
        net = _integer(made.get("used_memory", "")) - _integer(made.get("used_memory_startup", ""))
        return _percentage(_integer(made.get("used_memory_dataset", "")), net)
    numbers = [number for value in values if (number := _number(value)) is not None]
    if len(numbers) != len(values):
        return values[0]
    if name in _GREATEST or name.endswith(_GREATEST_BY_SUFFIX):
        return values[numbers.index(max(numbers))]
    if name == "aof_enabled" or (name == "maxmemory" and 0 in numbers):
        return values[numbers.index(min(numbers))]
    if _SUMS_OF_FRACTIONS.fullmatch(name):
        return f"{sum(numbers):.2f}" if name.endswith("_kbps") else f"{sum(numbers):.6f}"
    if all(isinstance(number, int) for number in numbers):
        return str(sum(numbers))
    return values[numbers.index(max(numbers))]


def _percentage(part: int, whole: int) -> str:
    return f"{100 * part / whole if whole > 0 else 0:.2f}%"


def _number(text: str) -> Number | None:
    """A figure as INFO spells one; None for anything else (nan and 1_000 are for Python only)."""
    if re.fullmatch(r"-?\d{1,30}", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?\d{1,30}\.\d{1,30}", text) else None


def _integer(text: str) -> int:
    return int(text) if re.fullmatch(r"-?\d{1,30}", text) else 0


def _pairs(value: str) -> Iterable[tuple[str, Number]]:
    """name=number pairs, those that are none left out."""
    for part in value.split(","):
        name, _, text = part.partition("=")
        if (number := _number(text)) is not None:
            yield name, number


def _integers(value: str) -> dict[str, int]:
    return {name: int(number) for name, number in _pairs(value)}


def _sums(documents: Sequence[Document], section: str, prefix: str) -> dict[str, dict[str, int]]:
    """Per field of that prefix: its figures, added up."""
    found: dict[str, dict[str, int]] = {}
    for document in documents:
        for name, value in fields(document, section).items():
            if not name.startswith(prefix):
                continue
            total = found.setdefault(name, {})
            for figure, number in _integers(value).items():
                if figure != "usec_per_call":
                    total[figure] = total.get(figure, 0) + number
    return found


def _spelt(figures: dict[str, int]) -> str:
    return ",".join(f"{name}={number}" for name, number in figures.items())
