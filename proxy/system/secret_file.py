"""A file that holds a secret, such as those of Docker, Kubernetes and systemd's LoadCredential=.

Why: a password should stand in a file of its own, with an owner and a mode of its own. Called by config.values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


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
        secret = (folder / written).read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ValueError(f"cannot read the secret in '{written}': {reason}") from None
    if not secret:
        raise ValueError(f"the secret in '{written}' is empty")
    return SecretFile(written, secret)
