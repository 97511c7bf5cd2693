"""One run of the daemon, from a good configuration to the exit code: what must happen before there is an event loop.

Why: the log, descriptors and listening sockets can fail for reasons only the operator can mend, each with its sentence
and exit code; after that proxy.supervisor.life takes over. Called by cli.

Invariants: run() raises nothing an operator can mend but says it in one sentence; whatever it opened is closed when it
returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import signal
import socket
import sys
from collections.abc import Callable

import uvloop

from proxy.config.models import Settings
from proxy.supervisor.forks import Forks
from proxy.supervisor.handover import HandoverError, Taken, take_over
from proxy.supervisor.life import StartError, Supervisor
from proxy.system import limits as descriptors
from proxy.system import log as logs
from proxy.system.sd_notify import Notifier
from proxy.system.sockets import ListenError, Listening, close_unused, inherited, open_listener, unwanted

EXIT_FAILED = 1
_OBEYED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_TAKE_OVER_S = 5.0


def run(settings: Settings, forks: Forks, reread: Callable[[], Settings] | None = None) -> int:
    """Runs the proxy until a signal ends it; returns the exit code: 0, or 1 when it cannot start.

    forks: started, and closed here. reread: reads the configuration anew for a reload (ConfigFaults); None: there is
    no file.
    """
    # Noted until the loop has its own handlers; asyncio's runner would turn SIGINT into a cancellation of whatever
    # the start-up is waiting for.
    early: list[int] = []
    for number in _OBEYED:
        signal.signal(number, lambda number, frame: early.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OBEYED)  # cli has blocked some of them
    # systemd's watchdog ends a hung daemon with SIGABRT: then the stack says where it hung. Not without a stderr.
    with contextlib.suppress(OSError, RuntimeError):
        faulthandler.enable()
    notifier = Notifier()
    listening: list[Listening] = []
    surplus: list[Listening] = []  # the predecessor's that this configuration does not want
    taken: Taken | None = None
    supervisor: Supervisor | None = None
    try:
        try:
            logs.setup(settings.log.level, settings.log.format, settings.log.file)
        except OSError as error:
            raise StartError(f"cannot write the log {settings.log.file}: {error.strerror}") from error
        descriptors.raise_limit(settings.clients.max_clients)
        taken = take_over(settings.handover, _TAKE_OVER_S) if settings.handover else None
        given = inherited()
        handed: list[socket.socket] = []
        if taken is not None:
            handed = taken.of("listener")
            given += taken.of("inherited")
        try:
            for listener in settings.listeners:
                listening += open_listener(listener, given, handed)
        finally:
            close_unused(given)
            surplus += unwanted(handed)
        supervisor = Supervisor(settings, listening, forks, notifier, taken=taken, surplus=surplus, reread=reread)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(supervisor.run(early))
            # The loop takes its handlers with it: a signal that comes now would change the exit code.
            signal.pthread_sigmask(signal.SIG_BLOCK, _OBEYED)
        return code
    except (ListenError, StartError, HandoverError, OSError) as error:
        print(f"redis-proxy: {error}", file=sys.stderr)
        notifier.status(str(error))
        return EXIT_FAILED
    finally:
        for one in listening + surplus:
            if taken is not None and not (supervisor and supervisor.serving):
                one.disown()  # the predecessor goes on listening at that file
            one.close()
        if taken is not None:
            taken.close()
        forks.close()
        notifier.close()
