"""A file that holds a secret, such as those of Docker, Kubernetes and systemd's LoadCredential=.

Why: a password should stand in a file of its own, with an owner and a mode of its own. Called by config.values.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

MOST: Final = 64 << 10  # bytes


class _Unfit(Exception):
    """What the path names holds no secret; the text is a reason."""


@dataclass(frozen=True, slots=True)
class SecretFile:
    """A file that holds a secret: its path as written (empty = none) and what it held, without the final newline."""

    path: str = ""
    secret: str = field(default="", repr=False)


def read_secret(written: object, folder: Path) -> SecretFile:
    """The secret in a file, its path relative to the folder; ValueError, a reason, for an unreadable or empty one."""
    if not isinstance(written, str):
        raise ValueError("should be the path of a file")
    if not written:
        return SecretFile()
    try:
        secret = _read(folder / written).decode("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ValueError(f"cannot read the secret in '{written}': {reason}") from None
    except _Unfit as unfit:
        raise ValueError(f"cannot read the secret in '{written}': {unfit}") from None
    if not secret:
        raise ValueError(f"the secret in '{written}' is empty")
    return SecretFile(written, secret)


def _read(path: Path) -> bytes:
    """What is in a file; OSError, _Unfit. A device may have no end, and a pipe nobody who writes to it."""
    # Not blocking, for it may be a pipe; the file is known only when it is open.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _Unfit("not a regular file")
        found = file.read(MOST + 1)
    if len(found) > MOST:
        raise _Unfit(f"longer than {MOST >> 10} KB")
    return found
