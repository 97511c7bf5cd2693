"""proxy.system.log: one line per event whatever is in it, in both spellings; repeats collapse; files move under it."""

import json
import logging
import os
import re

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
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:], logging.raiseExceptions = handlers, raising
    root.setLevel(level)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "proxy.system.log"


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


def test_stderr(capsys):
    log.setup("info", "logfmt")
    log.get("x").info("here")
    captured = capsys.readouterr()
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
        log.setup("debug", "json", str(tmp_path / "none" / "proxy.system.log"))
    log.get("x").debug("hidden")
    log.get("x").info("shown")
    (text,) = file.read_text().splitlines()
    assert text.endswith("level=info logger=x worker=3 msg=shown")


def test_second_setup_replaces_the_first(file, tmp_path):
    log.setup("info", "logfmt", str(file))
    log.setup("info", "json", str(tmp_path / "other.log"))
    log.get("x").info("m")
    assert file.read_text() == ""
    assert json.loads((tmp_path / "other.log").read_text())["msg"] == "m"


def test_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError):
        log.setup("info", "logfmt", str(tmp_path / "none" / "proxy.system.log"))


def test_reopen_after_rotation(file, tmp_path):
    log.setup("info", "logfmt", str(file))
    logger = log.get("x")
    logger.info("before")
    file.rename(tmp_path / "proxy.system.log.1")
    logger.info("between")
    log.reopen()
    logger.info("after")
    assert [text.split("msg=")[1] for text in (tmp_path / "proxy.system.log.1").read_text().splitlines()] == [
        "before",
        "between",
    ]
    assert [text.split("msg=")[1] for text in file.read_text().splitlines()] == ["after"]


def test_reopen_closes_the_old_file(file):
    log.setup("info", "logfmt", str(file))
    before = len(os.listdir("/proc/self/fd"))
    log.reopen()
    assert len(os.listdir("/proc/self/fd")) == before


def test_failed_reopen_keeps_the_old_file(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    log.setup("info", "logfmt", str(folder / "proxy.system.log"))
    folder.rename(tmp_path / "moved")
    log.reopen()
    log.get("x").info("after")
    failure, after = (tmp_path / "moved" / "proxy.system.log").read_text().splitlines()
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
