"""For programs in Python: `report(name, version)`, then `with check("strings"): ...`; each prints its line of JSON.

A check that raises is a failed one, with the error as its detail; the program goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import traceback
from collections.abc import Iterator
from typing import Any

HOST = os.environ["PROXY_HOST"]
PORT = int(os.environ["PROXY_PORT"])
SUBJECT = os.environ.get("SUBJECT", "given")  # proxy, plain or given


class NotTried(Exception):
    """Raised in a check: args[0] says why it cannot be tried here."""


def report(client: str, version: str) -> None:
    say(client=client, version=version)


def remark(text: str) -> None:
    """Into the table's last column."""
    say(remark=text)


@contextlib.contextmanager
def check(name: str) -> Iterator[None]:
    """One check. In `async def` code it may stand around awaits: `with check("x"): await ...`."""
    try:
        yield
    except NotTried as why:
        say(check=name, ok=None, detail=str(why))
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
        where = (own or [line])[-1]
        say(
            check=name,
            ok=False,
            detail=f"{type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno})",
        )
    else:
        say(check=name, ok=True)


def equal(got: Any, wanted: Any) -> None:
    """Says both when they differ."""
    if got != wanted:
        raise AssertionError(f"got {got!r}, not {wanted!r}")


def restart() -> None:
    """Restarts what is tested; returns when it answers again."""
    _act("RESTART")


def failover() -> None:
    """A replica takes over from a primary; returns when the cluster is whole."""
    _act("FAILOVER")


def _act(name: str) -> None:
    command = os.environ.get(name)
    if not command:
        raise NotTried(f"no {name.lower()} here")
    subprocess.run(command, shell=True, check=True, capture_output=True)


def say(**report: Any) -> None:
    print(json.dumps(report), flush=True)
