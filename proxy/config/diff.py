"""What a new configuration changes, option by option: for the log, and for what has to be done about it.

Why: a reload applies what changed and names what it cannot; both need the same list. Called by supervisor.reload.

Invariants: no difference in meaning is left out, a secret's included, and no secret is shown; values are spelt as in
the file. How the file came about (`include`) and the order of the listeners mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from proxy.config.models import Listener, Section, Settings
from proxy.system.secret_file import SecretFile

HIDDEN = "***"


@dataclass(frozen=True, slots=True)
class Change:
    """One option that has another value.

    key as in faults, but listeners by their address: `clients.max_clients`, `listeners[unix:/x].reads`. A listener
    that is there no more or for the first time: `listeners[unix:/x]`, its address as old or new, the other one empty.
    """

    key: str
    old: str
    new: str


def diff(old: Settings, new: Settings) -> list[Change]:
    """What is different in new, in the order of the models; listeners: those of old, then the ones that are new."""
    return list(_section("", old, new))


def _section(above: str, old: Section, new: Section) -> Iterator[Change]:
    was, now = old.model_dump(mode="json"), new.model_dump(mode="json")
    for name in type(old).model_fields:
        key = f"{above}{name}"
        before, after = getattr(old, name), getattr(new, name)
        if before == after or key == "include":
            continue
        if isinstance(before, Section):
            yield from _section(f"{key}.", before, after)
        elif key == "listeners":
            yield from _listeners(key, before, after)
        elif isinstance(before, SecretStr) or (isinstance(before, SecretFile) and before.path == after.path):
            yield Change(key, HIDDEN, HIDDEN)
        else:
            yield Change(key, _spelt(was[name]), _spelt(now[name]))


def _listeners(key: str, old: tuple[Listener, ...], new: tuple[Listener, ...]) -> Iterator[Change]:
    before = {str(listener.address): listener for listener in old}
    after = {str(listener.address): listener for listener in new}
    for address, listener in before.items():
        place = f"{key}[{address}]"
        if address in after:
            yield from _section(f"{place}.", listener, after[address])
        else:
            yield Change(place, address, "")
    for address in after:
        if address not in before:
            yield Change(f"{key}[{address}]", "", address)


def _spelt(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_spelt, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_spelt(one)}' for name, one in value.items())}}}"
    return str(value)
