"""One run of the daemon: sockets opened, a worker started, signals obeyed, the service manager told, an exit code.

Why: what happens between a good configuration and the exit code, apart from the words of the command line. Called by
cli; the demo runs it as a process of its own.

Invariants: run() raises nothing an operator can mend but says it in one sentence; whatever it opened is closed when it
returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import resource
import signal
import sys
from collections.abc import Sequence

import uvloop

from proxy import __version__
from proxy import log as logs
from proxy.config import Settings
from proxy.notify import Notifier
from proxy.sockets import ListenError, Listening, close_unused, inherited, open_listener
from proxy.worker import Worker

EXIT_FAILED = 1
# Besides its clients the process holds connections to nodes, listeners, epoll instances, logs.
_OTHER_DESCRIPTORS = 512
_STATUS_S = 5.0

log = logs.get("proxy")


def run(settings: Settings) -> int:
    """Runs the proxy until SIGTERM or SIGINT; returns the exit code: 0, or 1 when it cannot start."""
    # Noted until the loop has its own handlers; asyncio's runner would turn SIGINT into a cancellation of whatever
    # the start-up is waiting for.
    early: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: early.append(number))
    # systemd's watchdog ends a hung daemon with SIGABRT: then the stack says where it hung. Not without a stderr.
    with contextlib.suppress(OSError, RuntimeError):
        faulthandler.enable()
    try:
        logs.setup(settings.log.level, settings.log.format, settings.log.file)
    except OSError as error:
        print(f"redis-proxy: cannot write the log {settings.log.file}: {error.strerror}", file=sys.stderr)
        return EXIT_FAILED
    raise_descriptor_limit(settings.clients.max_clients + _OTHER_DESCRIPTORS)
    notifier = Notifier()
    listening: list[Listening] = []
    try:
        given = inherited()
        try:
            for listener in settings.listeners:
                listening.append(open_listener(listener, given))
        finally:
            close_unused(given)
        return uvloop.run(serve(settings, listening, early, notifier))
    except (ListenError, OSError) as error:
        print(f"redis-proxy: {error}", file=sys.stderr)
        notifier.status(str(error))
        return EXIT_FAILED
    finally:
        for one in listening:
            one.close()
        notifier.close()


async def serve(settings: Settings, listening: Sequence[Listening], early: Sequence[int], notifier: Notifier) -> int:
    """One worker, from start to the signal that ends it. early: signals that came before there was a loop."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if early:
        ended.set()
    loop.add_signal_handler(signal.SIGUSR1, logs.reopen)
    worker = Worker(settings, listening, loop)
    telling: asyncio.Task[None] | None = None
    try:
        await worker.start()
        log.info("started", version=__version__)
        notifier.ready()
        if notifier.active:
            telling = asyncio.create_task(tell(notifier, worker), name="notify")
        await ended.wait()
        log.info("stopping")
        notifier.stopping()
    finally:
        await worker.stop()
        if telling is not None:  # after it: the manager's patience has to last for the whole of the end
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
    return 0


async def tell(notifier: Notifier, worker: Worker) -> None:
    """Tells the service manager that this loop still turns, and for whom; ends only by cancellation."""
    interval_s = notifier.watchdog_interval_s
    pause_s = min(_STATUS_S, interval_s / 2) if interval_s else _STATUS_S
    status = ""
    while True:
        if interval_s:
            notifier.watchdog()
        now = f"{len(worker.path.clients)} clients, {worker.router.slots.covered} of 16384 slots"
        if now != status:
            status = now
            notifier.status(status)
        await asyncio.sleep(pause_s)


def raise_descriptor_limit(wanted: int) -> None:
    """Raises the soft file-descriptor limit as far as it may; warns when that is not enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        if limit < wanted:
            log.warning(
                "the file descriptor limit is too low for clients.max_clients",
                limit=limit,
                wanted=wanted,
                missing=wanted - limit,
            )
