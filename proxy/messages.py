"""What supervisor and workers say to each other; proxy.channel carries it.

Why: the whole conversation in one place, typed, so that a message of the wrong shape is a fault where it is read, not
three calls later. Both ends are the same installation: nothing here is meant to be stable between versions.

A settings field holds a pickled proxy.config.Settings: only a process of ours ever writes into a channel.
"""

from __future__ import annotations

from typing import Final

import msgspec

from proxy.admin.snapshot import WorkerState


class Start(msgspec.Struct, tag=True, array_like=True):
    """The first message to a worker, with one descriptor: the shared memory its counters live in."""

    worker: int  # its number: 0, 1, ...; a replacement has its predecessor's
    settings: bytes
    run_id: str
    started_s: float  # time.time() of the supervisor's start


class Take(msgspec.Struct, tag=True, array_like=True):
    """Clients to serve, one descriptor each, in this order; accepted at the listener of that address."""

    listener: str  # str(Listener.address)
    first_id: int  # CLIENT ID of the first; the others' follow


class Apply(msgspec.Struct, tag=True, array_like=True):
    """New settings, already checked. Answered with Applied of the same number."""

    number: int
    settings: bytes


class Ask(msgspec.Struct, tag=True, array_like=True):
    """How are you? Answered with State of the same number."""

    number: int


class Others(msgspec.Struct, tag=True, array_like=True):
    """What the other workers count, for INFO: to be added to the worker's own figures of these names."""

    figures: dict[str, int]
    max_clients: int  # of the whole proxy


class Drain(msgspec.Struct, tag=True, array_like=True):
    """Part with every client: spread over spread_s; what is under way may take until timeout_s. Then Bye, and end."""

    spread_s: float
    timeout_s: float


class Retire(msgspec.Struct, tag=True, array_like=True):
    """One worker too many: no client comes any more, and when the last has left: Bye, and end."""


class Reopen(msgspec.Struct, tag=True, array_like=True):
    """Open the log file by its name again."""


class Stop(msgspec.Struct, tag=True, array_like=True):
    """Close everything and end, at once."""


class Started(msgspec.Struct, tag=True, array_like=True):
    """Clients may come: the topology is known, or the first wait for it is over."""


class State(msgspec.Struct, tag=True, array_like=True):
    """Every second unasked (number 0), when readiness changes, and as the answer to Ask."""

    number: int
    state: WorkerState


class Names(msgspec.Struct, tag=True, array_like=True):
    """Which command metric has which index in the counters; comes before the index is first used."""

    metrics: dict[str, int]


class Left(msgspec.Struct, tag=True, array_like=True):
    """So many clients are gone since the last such message."""

    clients: int


class Applied(msgspec.Struct, tag=True, array_like=True):
    """What came of Apply; an error is a fault of ours, for the settings had been checked."""

    number: int
    error: str = ""


class Bye(msgspec.Struct, tag=True, array_like=True):
    """The worker has ended what it was told to end; the process follows."""


ToWorker = Start | Take | Apply | Ask | Others | Drain | Retire | Reopen | Stop
ToSupervisor = Started | State | Names | Left | Applied | Bye

TO_WORKER: Final = msgspec.msgpack.Decoder(ToWorker)
TO_SUPERVISOR: Final = msgspec.msgpack.Decoder(ToSupervisor)
