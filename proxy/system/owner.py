"""Whom a Unix socket's file is to belong to: `user`, `user:group` or `:group`, by name or by number.

Why: the ids are looked up where the configuration is read, so that a wrong name is a fault of the configuration and
nothing has to be looked up when the socket is opened. Called by config.values.
"""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Callable
from dataclasses import dataclass

HINT = "should be user, user:group or :group"
_ID_MAX = 2**32 - 2  # the one above means "as it is" to chown(2)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom a file is to belong to: as written (empty = whoever makes it), and the ids, -1 = as it is."""

    written: str = ""
    uid: int = -1
    gid: int = -1

    def __str__(self) -> str:
        return self.written


def find_owner(written: object) -> Owner:
    """The owner with its ids; ValueError, a reason, for what is no owner or is unknown to this machine."""
    if isinstance(written, int | float):  # to YAML 1.1 a bare 33:33 is the number 2013
        raise ValueError(f"{HINT}, in quotes")
    if not isinstance(written, str):
        raise ValueError(HINT)
    user, colon, group = written.partition(":")
    if (colon and not group) or ":" in group:
        raise ValueError(f"{HINT}, not '{written}'")
    uid = _id(user, "user", lambda name: pwd.getpwnam(name).pw_uid)
    gid = _id(group, "group", lambda name: grp.getgrnam(name).gr_gid)
    return Owner(written, uid, gid)


def _id(name: str, kind: str, known: Callable[[str], int]) -> int:
    if not name:
        return -1
    # A number need not have a name: inside a container it seldom has.
    if re.fullmatch(r"\d+", name, re.ASCII):
        if int(name) > _ID_MAX:
            raise ValueError(f"'{name}' is not the number of a {kind} (0 to {_ID_MAX})")
        return int(name)
    try:
        return known(name)
    except KeyError:
        raise ValueError(f"there is no {kind} '{name}' on this machine") from None
