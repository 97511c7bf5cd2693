"""Reports of single nodes made one of the cluster: the slow log, LATENCY, MEMORY, PUBSUB.

Why: their `response_policy` is `special`, so each has a way of its own to be put together. Called by serve.all_shards,
as serve.combine; a reply has the form (array or map, bulk or verbatim string) that the servers gave it.

Source of the forms: Redis 7.0 and Valkey 9.1, src/slowlog.c, commandlog.c, latency.c, object.c, pubsub.c.
"""

from __future__ import annotations

import math
from typing import Final

from proxy.resp import encode
from proxy.serve.combine import (
    Combine,
    Unexpected,
    aggregate,
    elements,
    failure,
    integer,
    is_error,
    number,
    pairs,
    text,
    whole,
)

_NO_SAMPLES: Final = b"-ERR No samples available"
_CALLS: Final = encode.bulk("calls")
_HISTOGRAM: Final = encode.bulk("histogram_usec")


# -- SLOWLOG GET, COMMANDLOG GET ---------------------------------------------------------------------------------------


def newest(count: int) -> Combine:
    """Entries of all nodes, the newest first, so many of them; below 0: all.

    Ids are each node's own; entries of one second stand in the order of the nodes.
    """

    def combined(replies: list[bytes]) -> bytes:
        entries = [entry for reply in replies for entry in elements(reply)]
        entries.sort(key=_when, reverse=True)  # stable, so that a node's own order stays within one second
        return encode.array(entries if count < 0 else entries[:count])

    return whole(combined)


def _when(entry: bytes) -> int:
    """Unix time of an entry: [id, time, ...]."""
    parts = entry.split(b"\r\n", 3)
    if not entry.startswith(b"*") or len(parts) < 4:
        raise Unexpected
    return number(parts[2])


# -- texts -------------------------------------------------------------------------------------------------------------


def _texts(replies: list[bytes], labels: list[str]) -> bytes:
    """One text when all say the same, else one after the other with the node's name above it."""
    if replies.count(replies[0]) == len(replies):
        return replies[0]
    sections = (
        b"# Node " + label.encode() + b"\n" + text(reply).rstrip(b"\r\n") + b"\n"
        for reply, label in zip(replies, labels, strict=True)
    )
    return encode.verbatim(b"\n".join(sections), "txt", 3 if replies[0].startswith(b"=") else 2)


def texts(replies: list[bytes], labels: list[str]) -> bytes:
    """LATENCY DOCTOR, MEMORY DOCTOR, MEMORY MALLOC-STATS."""
    return failure(replies, labels) or _texts(replies, labels)


def graphs(replies: list[bytes], labels: list[str]) -> bytes:
    """LATENCY GRAPH: of the nodes that have seen such an event; an error when none has."""
    told = [pair for pair in zip(replies, labels, strict=True) if not pair[0].startswith(_NO_SAMPLES)]
    if not told:
        return replies[0]
    replies, labels = map(list, zip(*told, strict=True))
    if len(told) == 1 and is_error(replies[0]):
        return failure([*replies, b"+OK\r\n"], [*labels, ""]) or replies[0]  # the others are no errors: it is named
    return texts(replies, labels)


# -- LATENCY -----------------------------------------------------------------------------------------------------------


def _latest(replies: list[bytes]) -> bytes:
    """[event, time, latest, highest] and, since Valkey 8.1, the sum and the number of all."""
    events: dict[bytes, list[int]] = {}
    for reply in replies:
        for entry in elements(reply):
            fields = elements(entry)
            values = [number(value) for value in fields[1:]]
            if len(values) < 3:
                raise Unexpected
            name = fields[0]
            known = events.setdefault(name, values)
            if len(values) != len(known):
                raise Unexpected
            if known is not values:
                recent = max(known[:2], values[:2])
                rest = map(sum, zip(known[3:], values[3:], strict=True))
                events[name] = [*recent, max(known[2], values[2]), *rest]
    rows = (encode.array([name, *map(integer, values)]) for name, values in events.items())
    return aggregate(replies[0], rows)


def _history(replies: list[bytes]) -> bytes:
    """[time, milliseconds] each, the oldest first."""
    samples = [tuple(map(number, elements(sample))) for reply in replies for sample in elements(reply)]
    if any(len(sample) != 2 for sample in samples):
        raise Unexpected
    samples.sort(key=lambda sample: sample[0])
    return aggregate(replies[0], (encode.array(map(integer, sample)) for sample in samples))


def _histogram(replies: list[bytes]) -> bytes:
    """command -> {calls, histogram_usec: {up to so many us: calls that took no longer}}."""
    commands: dict[bytes, list[bytes]] = {}
    for reply in replies:
        for name, told in pairs(reply):
            commands.setdefault(name, []).append(told)
    return aggregate(replies[0], (frame for name, told in commands.items() for frame in (name, _distribution(told))))


def _distribution(told: list[bytes]) -> bytes:
    """The nodes' cumulative histograms as one: a bucket that a node leaves out has no calls of its own."""
    calls, counts, form = 0, dict[int, int](), b""
    for one in told:
        fields = dict(pairs(one))
        if not {_CALLS, _HISTOGRAM} <= fields.keys():
            raise Unexpected
        calls += number(fields[_CALLS])
        form, before = fields[_HISTOGRAM], 0
        for bucket, value in pairs(form):
            most = number(value)
            counts[number(bucket)] = counts.get(number(bucket), 0) + most - before
            before = most
    made: list[bytes] = []
    total = 0
    for limit in sorted(counts):
        total += counts[limit]
        made += (integer(limit), integer(total))
    return aggregate(told[0], [_CALLS, integer(calls), _HISTOGRAM, aggregate(form, made)])


# -- MEMORY STATS ------------------------------------------------------------------------------------------------------


def _memory(replies: list[bytes]) -> bytes:
    """Bytes and counts added up; what is a share or a mean is made of the sums, or the mean by the bytes in use."""
    nodes = [dict(pairs(reply)) for reply in replies]
    used = encode.bulk("total.allocated")
    weights = [_float(node.get(used, b":0\r\n")) or 0.0 for node in nodes]
    sums: dict[bytes, bytes] = {}
    for key in dict.fromkeys(key for node in nodes for key in node):
        told = [(node[key], weight) for node, weight in zip(nodes, weights, strict=True) if key in node]
        sums[key] = _field(told)

    def figure(name: str) -> float:
        return _float(sums.get(encode.bulk(name), b":0\r\n")) or 0.0

    data = figure("total.allocated") - figure("startup.allocated")
    derived = {
        "keys.bytes-per-key": (data, figure("keys.count")),
        "dataset.percentage": (100 * figure("dataset.bytes"), data),
        "peak.percentage": (100 * figure("total.allocated"), figure("peak.allocated")),
    }
    for name, (of, by) in derived.items():
        key = encode.bulk(name)
        if key in sums and by > 0:
            sums[key] = _like(sums[key], of / by)
    return aggregate(replies[0], (frame for pair in sums.items() for frame in pair))


def _field(told: list[tuple[bytes, float]]) -> bytes:
    """One field of those nodes that have it: (value, weight) each."""
    first = told[0][0]
    if first.startswith(b":"):
        return integer(sum(number(value) for value, _ in told))
    if first.startswith((b"*", b"%")):
        return _nested([value for value, _ in told])
    values = [(number_, weight) for value, weight in told if (number_ := _float(value)) is not None]
    if len(values) != len(told):
        return first
    weight = sum(weight for _, weight in values)
    return _like(first, sum(value * one for value, one in values) / weight) if weight else first


def _nested(replies: list[bytes]) -> bytes:
    """db.0: integers by name."""
    sums: dict[bytes, int] = {}
    for reply in replies:
        for key, value in pairs(reply):
            sums[key] = sums.get(key, 0) + number(value)
    return aggregate(replies[0], (frame for key, value in sums.items() for frame in (key, integer(value))))


def _float(frame: bytes) -> float | None:
    """Of an integer, a double, or a double as RESP2 has it (a string); None when it is none."""
    try:
        return float(frame[1:] if frame.startswith((b":", b",")) else text(frame))
    except ValueError:
        return None


def _like(frame: bytes, value: float) -> bytes:
    """The value in the form of another number; that one itself when the value is none (the nodes say odd things)."""
    if not math.isfinite(value):
        return frame
    return integer(int(value)) if frame.startswith(b":") else encode.double(value, 3 if frame[:1] == b"," else 2)


# -- PUBSUB ------------------------------------------------------------------------------------------------------------


def _subscribers(replies: list[bytes]) -> bytes:
    """NUMSUB, SHARDNUMSUB: channels and numbers in turn, in the order in which they were asked for."""
    columns = [pairs(reply) for reply in replies]
    if len({len(column) for column in columns}) != 1:
        raise Unexpected
    made: list[bytes] = []
    for place in zip(*columns, strict=True):
        made += (place[0][0], integer(sum(number(count) for _, count in place)))
    return aggregate(replies[0], made)


latest: Final = whole(_latest)
history: Final = whole(_history)
histogram: Final = whole(_histogram)
memory: Final = whole(_memory)
subscribers: Final = whole(_subscribers)
