"""What a main process tells its successor: which cluster it has and how much of it, and who still serves clients.

Why: a successor that finds less of the cluster, or another one, must not take over; and while any process before it
serves clients, nothing may begin that is to hold for all of them. Written by supervisor.upgrade, read by run; on its
way it is a variable of the environment (system.successor).

Invariant: the text is ASCII and has some KB at most, however large the cluster is: a string of the environment may have
128 KB (execve(2)).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec

_NODES: Final = 100
_ID: Final = 64  # characters; those of Redis have 40


class Handover(msgspec.Struct, frozen=True, omit_defaults=True):
    """See the module. By default: there is nobody before, or nothing is known of it.

    processes: (pid, start ticks, see system.process) of the process that tells this, and of those before it that had
    not ended then. works: it has a cluster that works; then slots: how many of the 16384 it has reached the primaries
    of lately, whether or not they answer at this moment; nodes: ids of some of these, () = not known; seeds: which ones
    are in force, see seeds_word().
    """

    processes: tuple[tuple[int, int], ...] = ()
    works: bool = False
    slots: int = 0
    nodes: tuple[str, ...] = ()
    seeds: str = ""


def written(handover: Handover) -> str:
    """For the environment."""
    return msgspec.json.encode(handover).decode()


def read(text: str) -> Handover:
    """What was written; of what nobody has written, nothing."""
    try:
        return msgspec.json.decode(text, type=Handover)
    except (msgspec.MsgspecError, UnicodeError):
        return Handover()


def some_ids(ids: Iterable[str]) -> tuple[str, ...]:
    """As many node ids as can be passed on: whoever has the same cluster knows most of them. A node may call itself
    anything."""
    return tuple(one for one in ids if one.isascii() and one.isalnum() and len(one) <= _ID)[:_NODES]


def seeds_word(seeds: Iterable[object]) -> str:
    """The same for the same seeds, in whatever order they are written."""
    return hashlib.sha256(" ".join(sorted({str(seed) for seed in seeds})).encode()).hexdigest()
