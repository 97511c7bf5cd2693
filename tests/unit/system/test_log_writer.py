"""proxy.system.log_writer against real pipes and files: a reader that stalls, one that is gone, a disk that is full."""

from __future__ import annotations

import fcntl
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.embedded import wait_for
from proxy.system import log_writer
from proxy.system.log_writer import BYTES, LINES, LogWriter, Target, open_file

LINE = b"x" * 99 + b"\n"


def describe(level: str, msg: str, fields: dict[str, object]) -> bytes:
    return f"{level} {msg} {fields}\n".encode()


def lost(count: int) -> bytes:
    return describe("warning", "log lines were lost", {"lost": count})


class Pipe:
    """A pipe with a writer; what comes out of it."""

    def __init__(self, size: int = 4096) -> None:
        self.reader, self.target = os.pipe()
        fcntl.fcntl(self.target, fcntl.F_SETPIPE_SZ, size)
        self.writer = LogWriter(Target(self.target, "", describe))

    def read(self, lines: int) -> list[bytes]:
        """So many lines; waits for them."""
        data = b""
        while data.count(b"\n") < lines:
            part = os.read(self.reader, 1 << 16)
            assert part
            data += part
        return data.splitlines(keepends=True)

    def stall(self) -> None:
        """Writes more than the pipe takes; returns when 40 of 100 lines are in it and the thread waits for a reader."""
        go = threading.Event()
        self.writer._queue.put(go.wait)  # so that the first write has as many as fit
        for _ in range(100):
            self.writer.put(LINE)
        go.set()
        wait_for(lambda: self.writer._done_lines == 40, 10, "the pipe is full")

    def hang_up(self) -> None:
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1

    def close(self) -> None:
        self.hang_up()
        assert self.writer.close(10)
        os.close(self.target)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def cpu_s(thread: LogWriter) -> float:
    """CPU time its thread has used."""
    assert thread._thread.native_id is not None
    fields = Path(f"/proc/self/task/{thread._thread.native_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_reader_that_stalls_holds_nobody_up_and_loses_what_does_not_fit(pipe: Pipe) -> None:
    pipe.stall()
    began = time.monotonic()
    for _ in range(3 * LINES):
        pipe.writer.put(LINE)
    assert time.monotonic() - began < 5
    assert pipe.writer.dropped == 100 + 3 * LINES - LINES - 40  # 40 have been written
    told = lost(pipe.writer.dropped)
    assert pipe.read(LINES + 41) == [LINE] * (LINES + 40) + [told]
    pipe.writer.put(b"after\n")
    assert pipe.read(1) == [b"after\n"]


def test_where_lines_are_missing_is_told_there(pipe: Pipe) -> None:
    pipe.stall()
    for _ in range(LINES):
        pipe.writer.put(LINE)
    dropped = pipe.writer.dropped
    assert dropped == 60
    first = pipe.read(80)
    wait_for(lambda: pipe.writer._put_lines - pipe.writer._done_lines < LINES, 10, "there is room again")
    pipe.writer.put(b"after\n")
    assert (first + pipe.read(LINES + 42 - len(first)))[-2:] == [lost(dropped), b"after\n"]


def test_bytes_are_bounded_too(pipe: Pipe) -> None:
    pipe.stall()
    long = b"y" * (BYTES // 4) + b"\n"
    for _ in range(6):
        pipe.writer.put(long)
    assert pipe.writer.dropped == 3
    pipe.writer.put(b"z" * BYTES + b"\n")
    assert pipe.writer.dropped == 4


def test_close_gives_up_and_the_rest_is_still_harmless(pipe: Pipe) -> None:
    pipe.stall()
    began = time.monotonic()
    assert pipe.writer.close(0.05) is False
    assert pipe.writer.flush(0.05) is False
    assert time.monotonic() - began < 5
    pipe.writer.put(LINE)
    assert pipe.writer.dropped == 1
    assert pipe.read(101) == [LINE] * 100 + [lost(1)]  # as it reads at last
    assert pipe.writer.close(10)


def test_a_reader_that_has_gone(pipe: Pipe) -> None:
    pipe.hang_up()
    for _ in range(10):
        pipe.writer.put(LINE)
    assert pipe.writer.flush(10)
    assert pipe.writer.dropped == 10


@pytest.mark.parametrize("wait_s", [0.3])
def test_a_descriptor_that_does_not_block(pipe: Pipe, wait_s: float) -> None:
    """Whoever shares stderr may have made it so: nothing is lost, and waiting takes no CPU."""
    os.set_blocking(pipe.target, False)
    pipe.stall()
    before = cpu_s(pipe.writer)
    assert pipe.writer.flush(wait_s) is False
    assert cpu_s(pipe.writer) - before < wait_s / 2
    assert pipe.read(100) == [LINE] * 100
    assert pipe.writer.flush(10)
    assert pipe.writer.dropped == 0


def test_a_disk_that_is_full() -> None:
    """/dev/full says so to every write(2)."""
    writer = LogWriter(Target(open_file("/dev/full"), "/dev/full", describe))
    for _ in range(100):
        writer.put(LINE)
    assert writer.flush(10)
    before = cpu_s(writer)
    assert writer.dropped == 100
    assert not select.select([], [], [], 0.1)[0]
    assert cpu_s(writer) - before < 0.05
    assert writer.close(10)
    assert writer.dropped == 100


def test_a_line_that_was_cut_off_is_ended(tmp_path: Path) -> None:
    """A disk that gets full in the middle of a line, and then has room again."""
    path = tmp_path / "log"
    writer = LogWriter(Target(open_file(str(path)), str(path), describe))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (250, unlimited[1]))  # Python ignores SIGXFSZ: EFBIG
        for _ in range(5):
            writer.put(LINE)
        assert writer.flush(10)
        assert path.read_bytes() == LINE * 2 + LINE[:50]
        assert writer.dropped == 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    writer.put(b"after\n")
    assert writer.close(10)
    # What was lost is told with the next line, or before it when the thread comes to it while there is room already.
    assert path.read_bytes() in [
        LINE * 2 + LINE[:50] + b"\n" + end for end in (b"after\n" + lost(3), lost(3) + b"after\n")
    ]
    assert writer.dropped == 3


def test_order_of_lines_and_files(tmp_path: Path) -> None:
    first, second, moved = tmp_path / "first", tmp_path / "second", tmp_path / "moved"
    writer = LogWriter(Target(open_file(str(first)), str(first), describe))
    before = len(os.listdir("/proc/self/fd"))
    go = threading.Event()
    writer._queue.put(go.wait)  # nothing is written before all of this has been asked for
    writer.put(b"1\n")
    writer._queue.put(lambda: first.rename(moved))
    writer.put(b"2\n")
    writer.reopen()
    writer.put(b"3\n")
    writer.switch(Target(open_file(str(second)), str(second), describe))
    writer.put(b"4\n")
    go.set()
    assert writer.flush(10)
    assert [path.read_bytes() for path in (moved, first, second)] == [b"1\n2\n", b"3\n", b"4\n"]
    assert len(os.listdir("/proc/self/fd")) == before
    assert writer.close(10)
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_reopening_keeps_the_number_of_the_descriptor(tmp_path: Path) -> None:
    """faulthandler knows it."""
    path = tmp_path / "log"
    descriptor = open_file(str(path))
    writer = LogWriter(Target(descriptor, str(path), describe))
    path.unlink()
    writer.reopen()
    assert writer.flush(10)
    assert os.path.samestat(os.fstat(descriptor), path.stat())
    assert not os.get_inheritable(descriptor)
    assert writer.close(10)


def test_a_fifo_nobody_reads_is_an_error_and_no_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device or address"):
        open_file(str(tmp_path / "fifo"))


def test_batches_fit_a_pipe(pipe: Pipe) -> None:
    """So that lines of several processes on one stderr are not mixed: each write is whole, pipe(7)."""
    go = threading.Event()
    pipe.writer._queue.put(go.wait)
    for _ in range(60):
        pipe.writer.put(LINE)
    flags = fcntl.fcntl(pipe.reader, fcntl.F_GETFL)
    written = pipe.writer._outlet._descriptor
    fcntl.fcntl(written, fcntl.F_SETFL, fcntl.fcntl(written, fcntl.F_GETFL) | os.O_DIRECT)  # packets
    go.set()
    assert flags == fcntl.fcntl(pipe.reader, fcntl.F_GETFL)
    assert os.read(pipe.reader, 1 << 16) == LINE * 40
    assert os.read(pipe.reader, 1 << 16) == LINE * 20


# -- lines are to go elsewhere while nobody reads ----------------------------------------------------------------------


def to(path: Path) -> Target:
    return Target(open_file(str(path)), str(path), describe)


def test_a_stalled_reader_does_not_keep_the_lines_from_another_file(pipe: Pipe, tmp_path: Path) -> None:
    """As when the operator has the log written to a file because what reads stderr hangs."""
    pipe.stall()
    pipe.writer.switch(to(tmp_path / "log"))
    pipe.writer.put(b"after\n")
    assert pipe.writer.flush(10)
    assert pipe.writer.dropped == 60
    wait_for(lambda: (tmp_path / "log").read_bytes().count(b"\n") == 2, 10, "what was lost is told, too")
    assert sorted((tmp_path / "log").read_bytes().splitlines(keepends=True)) == [b"after\n", lost(60)]
    assert pipe.read(40) == [LINE] * 40


def test_a_slow_reader_still_gets_its_lines(pipe: Pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "GRACE_S", 60.0)
    pipe.stall()
    pipe.writer.switch(to(tmp_path / "log"))
    pipe.writer.put(b"after\n")
    assert pipe.read(100) == [LINE] * 100
    assert pipe.writer.flush(10)
    assert (pipe.writer.dropped, (tmp_path / "log").read_bytes()) == (0, b"after\n")


def test_another_format_on_stderr_drops_nothing(pipe: Pipe) -> None:
    """There is nowhere else to write: whoever stalls may still read."""
    pipe.stall()
    pipe.writer.switch(Target(pipe.target, "", describe))
    pipe.writer.reopen()  # means the file, of which there is none
    assert pipe.writer._moves == 0
    assert pipe.read(100) == [LINE] * 100
    assert pipe.writer.flush(10)
    assert pipe.writer.dropped == 0


def test_a_stalled_reader_does_not_keep_the_file_from_being_reopened(tmp_path: Path) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = LogWriter(to(path))
    for _ in range(3):
        writer.put(b"x" * (1 << 20) + b"\n")  # more than a pipe takes
    assert writer.flush(0.05) is False
    path.unlink()
    writer.reopen()
    writer.put(b"after\n")
    assert writer.flush(10)
    assert writer.close(10)
    assert writer.dropped == 3
    assert sorted(path.read_bytes().splitlines(keepends=True)) == [b"after\n", lost(3)]
    os.close(reader)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_long_line_does_not_block_where_stderr_does(kind: str, tmp_path: Path) -> None:
    """And it is left as it is: others share it."""
    ends = os.pipe() if kind == "pipe" else tuple(end.detach() for end in socket.socketpair())
    writer = LogWriter(Target(ends[1], "", describe))
    writer.put(b"x" * (BYTES // 2) + b"\n")
    wait_for(lambda: select.select([ends[0]], [], [], 0)[0], 10, "it has begun")
    assert os.get_blocking(ends[1])
    before = len(os.listdir("/proc/self/fd"))
    writer.switch(to(tmp_path / "log"))
    assert writer.flush(10)
    assert len(os.listdir("/proc/self/fd")) == before  # one closed, one opened
    assert writer.close(10)
    assert (tmp_path / "log").read_bytes() == lost(1)
    for end in ends:
        os.close(end)
