"""One run of the daemon, from a good configuration to the exit code: what must happen before there is an event loop.

Why: the log, descriptors and listening sockets can fail for reasons only the operator can mend, each with its sentence
and exit code; after that proxy.supervisor takes over. Called by cli.

Invariants: run() raises nothing an operator can mend but says it in one sentence; whatever it opened is closed when it
returns.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence

import uvloop

from proxy.config.models import Settings
from proxy.supervisor.supervisor import StartError, Supervisor
from proxy.system import handover, limits
from proxy.system import log as logs
from proxy.system.process import PREDECESSOR, TOLD, is_predecessor, set_title
from proxy.system.sd_notify import Notifier
from proxy.system.sockets import (
    ADMIN,
    ListenError,
    Listening,
    close_unused,
    inherited,
    open_listener,
    take_named,
    unwanted,
)

EXIT_FAILED = 1
_OBEYED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_FIRST_LINE_S = 1.0  # what the first line may take, where the log is a file
_LAST_LINES_S = 1.0  # what a reader of the log may take for the last lines

log = logs.get("run")


def run(
    settings: Settings,
    *,
    source: str,
    load: Callable[[], Settings] | None = None,
    no_upgrade: str = "",
    warnings: Sequence[str] = (),
) -> int:
    """Runs the proxy until a signal ends it; returns the exit code: 0, or 1 when it cannot start.

    source: what the configuration is called. load: reads it anew for a reload (ConfigFaults); None: there is no file.
    no_upgrade: why a successor cannot be started by the same command line. warnings: sentences for the log.
    """
    # Noted until the loop has its own handlers; asyncio's runner would turn SIGINT into a cancellation of whatever
    # the start-up is waiting for.
    early: list[int] = []
    for number in _OBEYED:
        signal.signal(number, lambda number, frame: early.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OBEYED)  # cli has blocked some of them
    notifier = Notifier()
    listening: list[Listening] = []
    surplus: list[Listening] = []  # a predecessor's that this configuration does not want
    supervisor: Supervisor | None = None
    try:
        try:
            logs.setup(settings.log.level, settings.log.format, settings.log.file)
        except OSError as error:
            raise StartError(f"cannot write the log {settings.log.file}: {error.strerror}") from error
        if settings.log.file and (reason := logs.unwritable(_FIRST_LINE_S)):
            # No reason to serve nobody; and there is no other place where this could be said.
            sentence = f"cannot write the log {settings.log.file}: {reason}: its lines are lost, and counted"
            print(f"redis-proxy: warning: {sentence}", file=sys.stderr)
        logs.log_uncaught()
        set_title(f"redis-proxy: main process ({source})")
        limits.forbid_core_dumps()
        for warning in warnings:
            log.warning(warning)
        parent = os.environ.get(PREDECESSOR, "")  # inherited() takes it away
        predecessor = int(parent) if is_predecessor(parent) else 0
        told = os.environ.pop(TOLD, "")
        given = inherited()
        admin = take_named(given, f"{ADMIN}{settings.admin.address}")
        try:
            for listener in settings.listeners:
                listening += open_listener(listener, given)
        finally:
            surplus += unwanted(given)
            close_unused(given)
        supervisor = Supervisor(
            settings,
            listening,
            notifier,
            source=source,
            load=load,
            no_upgrade=no_upgrade,
            inherited_admin=admin,
            surplus=surplus,
            predecessor=predecessor,
            before=handover.read(told) if predecessor else handover.Handover(),
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(supervisor.run(early))
            # The loop takes its handlers with it: a signal that comes now would change the exit code.
            signal.pthread_sigmask(signal.SIG_BLOCK, _OBEYED)
        return code
    except (ListenError, StartError, OSError) as error:
        sentence = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        print(f"redis-proxy: {sentence}", file=sys.stderr)
        notifier.status(sentence)
        return EXIT_FAILED
    finally:
        for one in listening + surplus:
            if one.origin and not (supervisor and supervisor.serving):
                one.disown()  # the predecessor goes on listening at that file
            one.close()
        notifier.close()
        logs.close(_LAST_LINES_S)
