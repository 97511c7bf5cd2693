"""A worker as a process: `python -P -m proxy.worker.main FD NUMBER VERSION`, started by the supervisor's worker pool.

FD: its end of the channel (a socketpair). NUMBER: 0, 1, ... VERSION: the main process's proxy.__version__.
Exit codes: 0 it was told to end; 1 the channel ended, or it could not start; EXIT_VERSION another version is installed
than the main process is: the program was upgraded under it, and versions must not mix.

Invariants: versions are compared before anything is imported but the standard library. Signals meant for the main
process, which blocks them over the exec, do nothing here.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from typing import Final

import proxy
from proxy.ipc import EXIT_VERSION

_IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main(descriptor: int, number: int, version: str) -> int:
    """Does the work and ends the process; returns the exit code when there is none to be done."""
    parent = os.getppid()
    for ignored in _IGNORED:
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    if version != proxy.__version__:
        text = f"version {proxy.__version__} is installed, but the main process is version {version}: not started"
        print(f"redis-proxy: worker {number}: {text}", file=sys.stderr)
        return EXIT_VERSION
    gc.disable()  # until it has started: what is imported stays
    from proxy.system.process import die_with_parent, end, set_title
    from proxy.worker.conversation import converse

    set_title(f"redis-proxy: worker {number}")
    try:
        die_with_parent(parent)
    except ProcessLookupError:
        return 1
    end(converse(socket.socket(fileno=descriptor), number))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
