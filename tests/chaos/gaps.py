"""The probers beside the workload, and what they say: the longest gap and the time to full service, both ways.

A gap is the time between two writes of one key that were taken, one after the other. Full service is back when the
last gap above DISTURBED_S has ended, or the last probe has failed; counted from the beginning of the fault. Both are
computed from the same kind of list for the cluster and for the proxy.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tests.chaos.history import kind_of
from tests.chaos.programs import started, tell

DISTURBED_S = 0.25

Sample = tuple[int, float, float, str]  # place of the key, began, ended, error


@dataclass
class Service:
    """What one prober saw from the fault on; seconds."""

    gap_s: float = 0.0
    back_s: float = 0.0  # from the fault to full service; 0 = it was never disturbed
    errors: Counter[str] = field(default_factory=Counter)
    p99_before_s: float = 0.0  # of writes to shards that the fault does not concern
    p99_during_s: float = 0.0


def judge(samples: Sequence[Sample], fault_at: float, healed_at: float, end: float, healthy: Sequence[int]) -> Service:
    """fault_at .. healed_at: the fault; end: when probing ended; healthy: places of keys on shards without fault."""
    service = Service()
    places = {place for place, *_ in samples}
    for place in places:
        taken = sorted(ended for p, _, ended, error in samples if p == place and not error and ended <= end)
        last = max((at for at in taken if at < fault_at), default=fault_at)
        for at in [*[at for at in taken if at >= fault_at], end]:
            service.gap_s = max(service.gap_s, at - last)
            if at - last > DISTURBED_S:
                service.back_s = max(service.back_s, at - fault_at)
            last = at
    for _, _, ended, error in samples:
        if error and fault_at <= ended <= end:
            service.errors[kind_of(error)] += 1
            service.back_s = max(service.back_s, min(ended, end) - fault_at)
    quiet = [(began, ended - began) for place, began, ended, error in samples if place in healthy and not error]
    service.p99_before_s = _p99([took for began, took in quiet if began < fault_at])
    service.p99_during_s = _p99([took for began, took in quiet if fault_at <= began <= healed_at])
    return service


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)] if values else 0.0


class Probers:
    """The prober program, as a context manager; stop() returns its samples: (direct, through the proxy)."""

    def __init__(self, keys: Sequence[str], nodes: Sequence[tuple[str, int]], proxy: tuple[str, int]) -> None:
        self._task = {"keys": list(keys), "nodes": list(nodes), "proxy": proxy}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Probers:
        self._process = started("tests.chaos.prober")
        tell(self._process, self._task)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()

    def stop(self) -> tuple[list[Sample], list[Sample]]:
        assert self._process is not None
        out, _ = self._process.communicate(timeout=30)
        found: dict[str, Any] = json.loads(out)
        return [tuple(one) for one in found["direct"]], [tuple(one) for one in found["proxy"]]
