"""proxy.log: one line per event whatever is in it, in both spellings; repeats collapse; files move under it."""

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.system import log


@pytest.fixture(autouse=True)
def logging_as_before():
    """Puts the root logger back: pytest's own capture handlers live there."""
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    log._limited.clear()
    yield
    log.close()
    root.handlers[:], logging.raiseExceptions = handlers, raising
    root.setLevel(level)


class Written(type(Path())):
    """A log file that is read when all that was logged is in it."""

    def read_text(self):
        assert log.flush(10)
        return super().read_text()


@pytest.fixture
def file(tmp_path):
    return Written(tmp_path / "proxy.log")


@pytest.fixture
def clock(monkeypatch):
    """log's monotonic time, moved by hand: clock[0] is now, in seconds."""
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    return now


def line(formatter: logging.Formatter, msg: str, /, **fields: object) -> str:
    record = logging.LogRecord("control", logging.WARNING, __file__, 1, msg, (), None)
    record.created, record.msecs = 1767225600.042, 42.0
    setattr(record, log.FIELDS, fields)
    return formatter.format(record)


def test_logfmt():
    assert line(log.Logfmt(), "node is up", node="10.0.0.1:6379", took_s=0.25, first=True, user=None, empty="") == (
        'ts=2026-01-01T00:00:00.042Z level=warning logger=control msg="node is up" node=10.0.0.1:6379 took_s=0.25'
        ' first=true user="" empty=""'
    )


def test_json():
    assert json.loads(line(log.Json(), "node is up", node="a:1", took_s=0.25, first=True, user=None)) == {
        "ts": "2026-01-01T00:00:00.042Z",
        "level": "warning",
        "logger": "control",
        "msg": "node is up",
        "node": "a:1",
        "took_s": 0.25,
        "first": True,
        "user": None,
    }


@given(st.text(), st.text())
@pytest.mark.parametrize("formatter", [log.Logfmt(), log.Json()])
def test_no_text_makes_a_second_line_or_field(formatter, msg, value):
    text = line(formatter, msg.replace("%", ""), value=value)
    assert re.fullmatch(r"[ -~]+", text)
    if isinstance(formatter, log.Json):
        assert json.loads(text)["value"] == value
    else:
        strings = r'"(?:[^"\\]|\\.)*"'
        assert [found[0] for found in re.findall(rf"(\w+)=({strings}|[^\s\"]+)(?: |$)", text)] == [
            "ts",
            "level",
            "logger",
            "msg",
            "value",
        ]


def test_bytes_are_never_shown():
    for value in (b"secret", bytearray(b"secret"), memoryview(b"secret")):
        assert line(log.Logfmt(), "bad reply", value=value).endswith('value="<6 bytes>"')


def test_a_field_cannot_replace_what_every_event_has():
    assert json.loads(line(log.Json(), "m", level="fake", msg="fake")) == {
        "ts": "2026-01-01T00:00:00.042Z",
        "level": "warning",
        "logger": "control",
        "msg": "m",
        "level_": "fake",
        "msg_": "fake",
    }


def test_exception_is_one_line(file):
    log.setup("info", "logfmt", str(file))
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.get("x").exception("failed", node="a:1")
    [text] = file.read_text().splitlines()
    assert " level=error logger=x msg=failed node=a:1 trace=" in text
    assert r"ValueError: two\nlines" in text


def test_fields_of_both_kinds_of_logger(file):
    log.setup("info", "json", str(file))
    log.get("a").info("one", node="a:1", extra={"fields": {"role": "primary"}})
    logging.getLogger("b").info("two %s", "words", extra={"fields": {"node": "b:1"}})
    first, second = map(json.loads, file.read_text().splitlines())
    assert (first["logger"], first["msg"], first["node"], first["role"]) == ("a", "one", "a:1", "primary")
    assert (second["logger"], second["msg"], second["node"]) == ("b", "two words", "b:1")


def test_level(file):
    log.setup("warning", "logfmt", str(file))
    logger = log.get("x")
    logger.info("hidden")
    log.set_level("debug")
    logger.debug("shown")
    log.set_level("error")
    logger.warning("hidden")
    assert [re.search(r"msg=(\w+)", text)[1] for text in file.read_text().splitlines()] == ["shown"]


def test_stderr(capfd):
    log.setup("info", "logfmt")
    log.get("x").info("here")
    assert log.flush(10)
    captured = capfd.readouterr()
    assert "msg=here" in captured.err
    assert not captured.out


def test_constant_fields(file):
    """Whose line it is, on every line, whatever logger it comes from; a field of the event cannot forge it."""
    log.setup("info", "logfmt", str(file), worker=3)
    log.get("x").info("one", node="a:1")
    logging.getLogger("asyncio").error("two")
    log.warn_limited(log.get("x"), "k", "three", worker=4)
    lines = [text.split(" ", 1)[1] for text in file.read_text().splitlines()]
    assert lines == [
        "level=info logger=x worker=3 msg=one node=a:1",
        "level=error logger=asyncio worker=3 msg=two",
        "level=warning logger=x worker=3 msg=three worker_=4",
    ]
    log.setup("info", "json", str(file), worker=0)
    log.get("x").info("four")
    event = json.loads(file.read_text().splitlines()[-1])
    assert list(event) == ["ts", "level", "logger", "worker", "msg"]
    assert event["worker"] == 0


def test_failed_setup_keeps_the_log_as_it_was(file, tmp_path):
    log.setup("info", "logfmt", str(file), worker=3)
    with pytest.raises(FileNotFoundError):
        log.setup("debug", "json", str(tmp_path / "none" / "proxy.log"))
    log.get("x").debug("hidden")
    log.get("x").info("shown")
    (text,) = file.read_text().splitlines()
    assert text.endswith("level=info logger=x worker=3 msg=shown")


def test_second_setup_replaces_the_first(file, tmp_path):
    log.setup("info", "logfmt", str(file))
    log.get("x").info("before")
    log.setup("info", "json", str(tmp_path / "other.log"))
    log.get("x").info("m")
    assert file.read_text().endswith("msg=before\n")
    assert json.loads((tmp_path / "other.log").read_text())["msg"] == "m"


def test_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError):
        log.setup("info", "logfmt", str(tmp_path / "none" / "proxy.log"))


def test_whether_lines_can_be_written(file, tmp_path):
    """Found by writing one, whatever the level; and again when there is room."""
    log.setup("error", "logfmt", "/dev/full")
    before = log.dropped()
    assert log.unwritable() == "No space left on device"
    assert log.trouble() == "No space left on device"
    assert log.dropped() == before + 1
    path = tmp_path / "other.log"
    log.setup("error", "logfmt", str(path))
    assert log.unwritable() == ""
    assert log.trouble() == ""
    assert 'msg="lines of the log go here from now on"' in path.read_text()


def test_lines_that_nobody_takes_in_time(file, tmp_path):
    """That is neither yes nor no, and whoever asks says what it means; a file after it takes lines at once."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    filled = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(filled, bytes(1 << 12))
    log.setup("info", "logfmt", str(fifo))
    assert log.unwritable(0.05, "nobody knows") == "nobody knows"
    before = log.dropped()
    log.setup("info", "logfmt", str(file))
    assert log.unwritable(10, "nobody knows") == ""
    assert log.dropped() == before + 1
    os.close(filled)
    os.close(reader)


def test_reopen_after_rotation(file, tmp_path):
    log.setup("info", "logfmt", str(file))
    logger = log.get("x")
    logger.info("before")
    file.rename(tmp_path / "proxy.log.1")
    logger.info("between")
    log.reopen()
    logger.info("after")
    assert log.flush(10)
    assert [text.split("msg=")[1] for text in (tmp_path / "proxy.log.1").read_text().splitlines()] == [
        "before",
        "between",
    ]
    assert [text.split("msg=")[1] for text in file.read_text().splitlines()] == ["after"]


def test_reopen_closes_the_old_file(file):
    log.setup("info", "logfmt", str(file))
    before = len(os.listdir("/proc/self/fd"))
    log.reopen()
    assert log.flush(10)
    assert len(os.listdir("/proc/self/fd")) == before


def test_failed_reopen_keeps_the_old_file(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    log.setup("info", "logfmt", str(folder / "proxy.log"))
    folder.rename(tmp_path / "moved")
    log.reopen()
    log.get("x").info("after")
    assert log.flush(10)
    failure, after = (tmp_path / "moved" / "proxy.log").read_text().splitlines()
    assert 'msg="cannot reopen the log file"' in failure
    assert 'reason="No such file or directory"' in failure
    assert "msg=after" in after


@pytest.mark.parametrize("logger", [log.get("x"), logging.getLogger("x")])
def test_repeats_collapse(file, clock, logger):
    log.setup("info", "json", str(file))
    for _ in range(5):
        log.warn_limited(logger, "down:a", "node is down", node="a")
    log.warn_limited(logger, "down:b", "node is down", node="b")
    clock[0] += log.REPEAT_INTERVAL_S
    log.warn_limited(logger, "down:a", "node is down", node="a")
    clock[0] += log.REPEAT_INTERVAL_S
    log.warn_limited(logger, "down:a", "node is down", node="a")
    shown = [json.loads(text) for text in file.read_text().splitlines()]
    assert [(event["node"], event.get("repeated")) for event in shown] == [
        ("a", None),
        ("b", None),
        ("a", 4),
        ("a", None),
    ]


def test_repeats_are_counted_per_logger(file, clock):
    log.setup("info", "json", str(file))
    log.warn_limited(log.get("x"), "k", "m")
    log.warn_limited(log.get("y"), "k", "m")
    assert len(file.read_text().splitlines()) == 2


def test_memory_of_repeats_is_bounded(file, clock):
    log.setup("error", "json", str(file))
    for n in range(log.REPEAT_KEYS + 10):
        log.warn_limited(log.get("x"), str(n), "m")
    assert len(log._limited) == log.REPEAT_KEYS
    assert ("x", "0") not in log._limited
    assert ("x", str(log.REPEAT_KEYS + 9)) in log._limited


# What reaches stderr otherwise


PRELUDE = "import os, sys; from proxy.system import log; log.setup('info', 'logfmt', sys.argv[1]); "


def run(code, *words, **options):
    return subprocess.run([sys.executable, "-c", PRELUDE + code, *map(str, words)], timeout=30, **options)


@pytest.mark.parametrize("rotated", [False, True])
def test_the_stacks_of_a_crash_go_to_the_file(tmp_path, rotated):
    """Also to the one that was opened anew."""
    path = tmp_path / "log"
    rotate = "os.rename(sys.argv[1], sys.argv[1] + '.1'); log.reopen(); log.flush(); " if rotated else ""
    done = run(f"{rotate}os.abort()", path, capture_output=True)
    assert (done.returncode, done.stderr) == (-6, b"")
    assert "Fatal Python error: Aborted" in path.read_text()


def test_the_stacks_of_a_crash_go_to_stderr_without_a_file():
    done = run("os.abort()", "", capture_output=True)
    assert b"Fatal Python error: Aborted" in done.stderr


UNCAUGHT = """
import threading, warnings
class Broken:
    def __del__(self): raise ValueError("in __del__")
def fail(): raise ValueError("in a thread")
log.log_uncaught()
Broken()
thread = threading.Thread(target=fail); thread.start(); thread.join()
warnings.warn("beware")
raise ValueError("at the end")
"""


def test_what_nobody_caught_is_logged_and_not_on_stderr(tmp_path):
    path = tmp_path / "log"
    done = run(UNCAUGHT, path, capture_output=True)
    assert (done.returncode, done.stderr) == (1, b"")
    lines = path.read_text().splitlines()
    for line, text in zip(lines, ("in __del__", "in a thread", "beware", "at the end"), strict=True):
        assert text in line


def test_the_end_of_the_process_loses_nothing(tmp_path):
    path = tmp_path / "log"
    done = run("[log.get('x').info('m', n=n) for n in range(1000)]", path)
    assert done.returncode == 0
    assert len(path.read_text().splitlines()) == 1000


def test_a_reader_that_stalls_does_not_keep_the_process(tmp_path):
    """What fits into its pipe is read later; the end comes in close's time."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as output:
        code = "[log.get('x').info('m' * 1000) for n in range(200)]; print(log.close(0.1), log.dropped())"
        code += "; log.get('x').info('harmless'); print(log.dropped())"
        done = run(code, "", stderr=writer, stdout=subprocess.PIPE, text=True)
        os.close(writer)
        assert (done.returncode, done.stdout) == (0, "False 0\n1\n")
        assert output.read().count(b"\n") >= 40  # of some 1,060 bytes each, in 64 KB


def test_without_a_stderr_lines_go_nowhere(tmp_path):
    """And not into whatever has got its number meanwhile."""
    other = tmp_path / "other"
    code = "log.close(); fd = os.open(sys.argv[2], os.O_CREAT | os.O_RDWR); os.dup2(fd, 2); "
    code += "log.setup('info', 'logfmt'); log.get('x').info('m'); log.flush(); print(log.dropped()); os.abort()"
    command = [sys.executable, "-c", PRELUDE + code, str(tmp_path / "log"), str(other)]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *command], stdout=subprocess.PIPE, timeout=30, check=False
    )
    assert done.stdout == b"1\n"
    assert other.read_bytes() == b""


def test_a_log_that_was_closed_can_be_set_up_again(file):
    log.setup("info", "logfmt", str(file))
    log.close()
    before = log.dropped()
    log.get("x").info("lost")
    assert log.dropped() == before + 1
    log.setup("info", "logfmt", str(file))
    log.get("x").info("kept")
    assert [text.split("msg=")[1] for text in file.read_text().splitlines()] == ["kept"]
    assert log.dropped() == before + 1


def test_lines_of_many_threads_are_all_there(file):
    log.setup("info", "logfmt", str(file))
    threads = [threading.Thread(target=lambda: [log.get("x").info("m", n=n) for n in range(300)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(file.read_text().splitlines()) == 2400
