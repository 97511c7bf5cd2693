"""Children that the kernel kills (SIGKILL) when the thread that started them ends: servers of a demo, of tests.

Why: whoever starts a cluster may be killed itself, and its servers must not stay behind. Called by embedded and demo,
and by tests and bench. A worker sees to it by itself (system.process).
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
# The parent may have ended before setpriv's call, and then nothing would be sent any more.
_IF_IT_LIVES: Final = '[ "$PPID" = "$0" ] && exec "$@"'


def die_with_parent() -> Callable[[], None] | None:
    """A Popen preexec_fn that has the kernel kill the child when its parent dies; None where there is no prctl."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up here: the forked child must not load libraries
    parent = os.getpid()

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the call
            os._exit(1)

    return arm


def start_mortal(words: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Popen(words, **options) of a child that dies with this process; OSError as Popen's.

    By setpriv(1) where there is one: for a preexec_fn Python copies this process first, 15 ms and more when that is a
    large one as a test run is. By setpriv, the child is another program for its first milliseconds.
    """
    if not (setpriv := _setpriv()):
        return subprocess.Popen(words, preexec_fn=die_with_parent(), **options)
    if shutil.which(words[0]) is None:
        missing = errno.EACCES if os.path.exists(words[0]) else errno.ENOENT
        raise OSError(missing, os.strerror(missing), words[0])
    shell = ["/bin/sh", "-c", _IF_IT_LIVES, str(os.getpid())]
    return subprocess.Popen([setpriv, "--pdeathsig", "KILL", *shell, *words], **options)


@lru_cache
def _setpriv() -> str:
    """Path of a setpriv that knows --pdeathsig (busybox's does not); "" when there is none."""
    found = shutil.which("setpriv") or ""
    tried = [found, "--pdeathsig", "KILL", "/bin/sh", "-c", ":"]
    return found if found and subprocess.run(tried, capture_output=True, check=False).returncode == 0 else ""
