"""Structured logging: one line per event, logfmt or JSON, on stderr or in a file that logrotate may move.

Why: an operator greps and ships these lines, so whatever a client or a node sent must not be able to forge one.
Who calls it: run and worker (setup, reopen, set_level), control and admin (get). Never the data path (DESIGN 3,
rule 6).

Invariants:
- An event is exactly one line of printable ASCII: texts are escaped, bytes are shown as their length only.
- A warning repeated for the same key appears at most once per REPEAT_INTERVAL_S and then says how many were left out.
- Reopening never loses a line: a file that cannot be reopened leaves the old one in use.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

FIELDS = "fields"  # the name under `extra` of a plain logging.Logger
REPEAT_INTERVAL_S = 10.0
REPEAT_KEYS = 1024
BARE = re.compile(r"[A-Za-z0-9_.:/@+*,\[\]()<>|-]+", re.ASCII)
OPTIONS_OF_LOGGING = frozenset({"exc_info", "stack_info", "stacklevel", "extra"})

_limited: dict[tuple[str, str], tuple[float, int]] = {}  # (logger, key) -> when it was last shown, left out since


class EventLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose keyword arguments are the event's fields: `log.info("connected", node=address)`."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Moves the fields out of logging's own options."""
        options = {name: value for name, value in kwargs.items() if name in OPTIONS_OF_LOGGING}
        fields = {name: value for name, value in kwargs.items() if name not in OPTIONS_OF_LOGGING}
        extra = options.get("extra") or {}
        return msg, {**options, "extra": {**extra, FIELDS: {**extra.get(FIELDS, {}), **fields}}}


def get(name: str) -> EventLogger:
    """The logger of one module, called by its path (`control.backend_pool`)."""
    return EventLogger(logging.getLogger(name), {})


def setup(level: str, format: str, file: str = "", **constant: object) -> None:
    """Sends everything logged in this process to stderr or a file, with the `constant` fields on every line.

    OSError when the file cannot be opened; the log is then what it was before.
    """
    handler = _ReopenableFile(file) if file else logging.StreamHandler(sys.stderr)
    handler.setFormatter({"logfmt": Logfmt, "json": Json}[format](constant))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    logging.raiseExceptions = False  # a full disk or a closed stderr must not turn into tracebacks
    set_level(level)


def set_level(level: str) -> None:
    """debug, info, warning or error, from now on."""
    logging.getLogger().setLevel(level.upper())


def reopen() -> None:
    """Opens the log file by its name again (SIGUSR1); on failure keeps the old one and says so in it."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _ReopenableFile):
            try:
                handler.reopen()
            except OSError as error:
                get("log").error("cannot reopen the log file", file=handler.baseFilename, reason=error.strerror)


def warn_limited(logger: logging.Logger | EventLogger, key: str, msg: str, **fields: Any) -> None:
    """A warning, at most once per key and REPEAT_INTERVAL_S; `repeated=N` were left out since the last one shown."""
    now = time.monotonic()
    place = (logger.name, key)
    shown, left_out = _limited.get(place, (float("-inf"), 0))
    if now - shown < REPEAT_INTERVAL_S:
        _limited[place] = (shown, left_out + 1)
        return
    _limited.pop(place, None)
    if len(_limited) >= REPEAT_KEYS:
        del _limited[next(iter(_limited))]  # the one shown longest ago: entries are in the order they were shown
    _limited[place] = (now, 0)
    if left_out:
        fields["repeated"] = left_out
    logger.warning(msg, extra={FIELDS: fields})


class _Event(logging.Formatter):
    """What an event consists of, whatever its spelling. constant: fields that every event of this process has."""

    def __init__(self, constant: Mapping[str, object] | None = None) -> None:
        super().__init__()
        self._constant = {name: _shown(value) for name, value in (constant or {}).items()}

    def event(self, record: logging.LogRecord) -> dict[str, object]:
        """ts (UTC, ms), level, logger, the constant fields, msg, its own fields, and the exception if there is one."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        event: dict[str, object] = {
            "ts": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._constant,
            "msg": record.getMessage(),
        }
        fields: Mapping[str, object] = getattr(record, FIELDS, {})
        for name, value in fields.items():
            event[f"{name}_" if name in event else name] = _shown(value)
        if record.exc_info:
            event["trace"] = self.formatException(record.exc_info)
        return event


class Logfmt(_Event):
    """`ts=... level=info logger=control msg="node is up" node=10.0.0.1:6379`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of name=value pairs; a value that is not plain is a JSON string."""
        return " ".join(f"{name}={_logfmt(value)}" for name, value in self.event(record).items())


class Json(_Event):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Numbers, booleans and null stay what they are."""
        return json.dumps(self.event(record))


class _ReopenableFile(logging.FileHandler):
    def __init__(self, file: str) -> None:
        super().__init__(Path(file), encoding="utf-8")

    def reopen(self) -> None:
        """Opens the name again, then lets the old file go; OSError leaves the old one in use."""
        stream = self._open()
        self.acquire()
        try:
            old, self.stream = self.stream, stream
        finally:
            self.release()
        if old is not None:
            old.close()


def _shown(value: object) -> object:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _logfmt(value: object) -> str:
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if BARE.fullmatch(text) else json.dumps(text)
