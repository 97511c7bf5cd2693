"""Structured logging: one line per event, logfmt or JSON, on stderr or in a file that logrotate may move.

Why: an operator greps and ships these lines, so whatever a client or a node sent must not be able to forge one.
Who calls it: run and worker (setup, reopen, close), and whoever has something to say (get). Never the data path
(DESIGN 3, rule 6).

Invariants:
- An event is exactly one line of printable ASCII: texts are escaped, bytes are shown as their length only.
- Logging never waits: lines are made where they are logged and written by a thread (log_writer). What it cannot keep up
  with is dropped, counted (dropped) and told in the log.
- A warning repeated for the same key appears at most once per REPEAT_INTERVAL_S and then says how many were left out.
- With a file nothing goes to stderr, the stacks of a crash neither.
- Reopening a file loses no line: one that cannot be reopened leaves the old one in use. Only what nobody takes, as
  from a FIFO whose reader stalls, is dropped when lines are to go elsewhere, and counted.
"""

from __future__ import annotations

import atexit
import errno
import faulthandler
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

from proxy.system.log_writer import LogWriter, Target, open_file

FIELDS = "fields"  # the name under `extra` of a plain logging.Logger
REPEAT_INTERVAL_S = 10.0
REPEAT_KEYS = 1024
BARE = re.compile(r"[A-Za-z0-9_.:/@+*,\[\]()<>|-]+", re.ASCII)
OPTIONS_OF_LOGGING = frozenset({"exc_info", "stack_info", "stacklevel", "extra"})

_STDERR: Final = 2
_CLOSE_S: Final = 1.0

_writer: LogWriter | None = None
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

    So too the stacks of a crash (faulthandler). OSError when the file cannot be opened; the log is then what it was
    before. May be called again at any time: lines logged before still go where they belong.
    """
    global _writer
    formatter = {"logfmt": Logfmt, "json": Json}[format](constant)
    # Python has no stderr where descriptor 2 was closed when it started: the number may be anybody's by now.
    descriptor = open_file(file) if file else _STDERR if sys.__stderr__ is not None else -1
    target = Target(descriptor, file, formatter.line)
    if _writer is not None and not _writer.closed:
        _writer.switch(target)
    else:
        try:
            _writer = LogWriter(target, dropped())
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, "no thread can be started for it") from error
        atexit.register(close)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(_Queue(_writer, formatter))
    logging.raiseExceptions = False  # an event that cannot be spelt must not turn into tracebacks on stderr
    set_level(level)
    _send_stacks_to(descriptor)


def set_level(level: str) -> None:
    """debug, info, warning or error, from now on."""
    logging.getLogger().setLevel(level.upper())


def reopen() -> None:
    """Opens the log file by its name again (SIGUSR1), soon; on failure keeps the old one and says so in it."""
    if _writer is not None:
        _writer.reopen()


def unwritable(timeout_s: float = _CLOSE_S, unknown: str = "") -> str:
    """Why lines cannot be written where they go now, as on a full disk, found by writing one; "" = they can. unknown:
    what to say when it is not known within that time. Blocks for as long."""
    record = logging.LogRecord("log", logging.INFO, "", 0, "lines of the log go here from now on", (), None)
    logging.getLogger("log").handle(record)  # at any level
    return trouble() if flush(timeout_s) else unknown


def trouble() -> str:
    """Why the last line that was to be written could not be, as on a full disk; "" = it could."""
    return _writer.trouble if _writer is not None else ""


def flush(timeout_s: float = _CLOSE_S) -> bool:
    """Waits until what was logged has been written or dropped; whether that was within the time. For tests, mainly."""
    return _writer is None or _writer.flush(timeout_s)


def close(timeout_s: float = _CLOSE_S) -> bool:
    """Writes what waits to be written, but gives up after that time, as when the reader stalls; whether it is done.

    What is logged from then on is dropped and counted, until setup() is called again. Called at the end of the process
    if it was not before; os._exit() does not.
    """
    if _writer is None:
        return True
    _send_stacks_to(_STDERR if sys.__stderr__ is not None else -1)  # the file is about to be closed
    return _writer.close(timeout_s)


def dropped() -> int:
    """Lines lost since the process began, because nobody read them or they could not be written."""
    return 0 if _writer is None else _writer.dropped


def log_uncaught() -> None:
    """Logs what otherwise goes to stderr: warnings, and exceptions nobody caught, in threads and in __del__ too."""
    log = get("log")

    def uncaught(kind: type[BaseException], value: BaseException, trace: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, value, trace)
        else:
            log.error("an exception that nobody caught", exc_info=(kind, value, trace))

    def uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            uncaught(args.exc_type, args.exc_value, args.exc_traceback)

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        if args.exc_value is not None:
            uncaught(args.exc_type, args.exc_value, args.exc_traceback)

    sys.excepthook, threading.excepthook, sys.unraisablehook = uncaught, uncaught_in_thread, unraisable
    logging.captureWarnings(True)


def warn_limited(logger: logging.Logger | EventLogger, key: str, msg: str, **fields: Any) -> bool:
    """A warning, at most once per key and REPEAT_INTERVAL_S; `repeated=N` were left out since the last one shown.

    Returns whether this one is shown: what belongs to one that is not, its end for example, need not be logged either.
    """
    now = time.monotonic()
    place = (logger.name, key)
    shown, left_out = _limited.get(place, (float("-inf"), 0))
    if now - shown < REPEAT_INTERVAL_S:
        _limited[place] = (shown, left_out + 1)
        return False
    _limited.pop(place, None)
    if len(_limited) >= REPEAT_KEYS:
        del _limited[next(iter(_limited))]  # the one shown longest ago: entries are in the order they were shown
    _limited[place] = (now, 0)
    if left_out:
        fields["repeated"] = left_out
    logger.warning(msg, extra={FIELDS: fields})
    return True


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

    def line(self, level: str, msg: str, fields: Mapping[str, object]) -> bytes:
        """An event of the log itself, as it is written."""
        record = logging.LogRecord("log", logging.getLevelName(level.upper()), "", 0, msg, (), None)
        setattr(record, FIELDS, fields)
        return _encoded(self.format(record))


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


class _Queue(logging.Handler):
    """Makes lines of events and leaves them to the writer."""

    def __init__(self, writer: LogWriter, formatter: logging.Formatter) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the handler's lock held."""
        try:
            line = _encoded(self.format(record))
        except Exception:
            self.handleError(record)
        else:
            self._writer.put(line)


def _encoded(line: str) -> bytes:
    return line.encode("ascii", "backslashreplace") + b"\n"


def _send_stacks_to(descriptor: int) -> None:
    if descriptor < 0:
        faulthandler.disable()
    else:
        faulthandler.enable(file=descriptor)


def _shown(value: object) -> object:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _logfmt(value: object) -> str:
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if BARE.fullmatch(text) else json.dumps(text)
