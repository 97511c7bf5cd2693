"""Tasks that run beside everything else and that nobody awaits.

Why: a task that dies of a fault of ours must neither go unnoticed nor take anything with it: what it kept up (a
topology, a probe) would be missing until a restart. Called by the modules of proxy.control.

Invariant: an exception that ends such a task is logged and counted, and the task is begun again, after a pause that
grows while it keeps failing.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final

from proxy.system.log import get

PAUSE_MIN_S: Final = 0.1
PAUSE_MAX_S: Final = 5.0
STEADY_S: Final = 10.0  # what went well for so long begins anew with the shortest pause

failures: Final[Counter[str]] = Counter()  # kind of task -> how often an exception ended one, for the metrics

log = get("control")


def keep(work: Callable[[], Coroutine[Any, Any, None]], kind: str) -> asyncio.Task[None]:
    """A task of the running loop that does `work`, again when it fails. Whoever asked for it keeps it and cancels it.

    kind: what it is for, such as `topology-refresh`; one of a few, for it becomes a label of a metric.
    """
    failures[kind] += 0  # the metric is there from the start
    return asyncio.get_running_loop().create_task(_kept(work, kind), name=kind)


async def _kept(work: Callable[[], Coroutine[Any, Any, None]], kind: str) -> None:
    pause_s = PAUSE_MIN_S
    while True:
        began_s = time.monotonic()
        try:
            return await work()
        except Exception:
            failures[kind] += 1
            if time.monotonic() - began_s >= STEADY_S:
                pause_s = PAUSE_MIN_S
            log.exception("a background task failed and is begun again", task=kind, after_s=pause_s)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_MAX_S)
