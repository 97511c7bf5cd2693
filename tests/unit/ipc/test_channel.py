"""The channel over a real socketpair: messages, descriptors, what does not fit, ends."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from proxy.ipc.channel import MAX_DESCRIPTORS, Channel, encode, pair
from proxy.ipc.messages import FROM_WORKER, TO_WORKER, Applied, Ask, Others, Reopen, Stop, Take

ROOT = Path(__file__).parents[3]


class End:
    """A channel that notes what comes."""

    def __init__(self, sock: socket.socket, decoder: Any = TO_WORKER) -> None:
        self.messages: list[Any] = []
        self.descriptors: list[list[int]] = []
        self.ends: list[str] = []
        self.heard = asyncio.Event()
        self.answer: Any = None  # to each message
        self.channel = Channel(sock, decoder, self._message, self._end)

    def _message(self, message: Any, descriptors: list[int]) -> None:
        self.messages.append(message)
        self.descriptors.append(descriptors)
        if self.answer is not None:
            self.channel.send(self.answer)
        self.heard.set()

    def _end(self, reason: str) -> None:
        self.ends.append(reason)
        self.heard.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.heard.clear()
                await self.heard.wait()


def run(test: Callable[[End, End], Coroutine[Any, Any, None]]) -> None:
    """Runs it with the two started ends of a channel, in uvloop as the daemon does."""

    async def body() -> None:
        here, there = pair()
        left, right = End(here, FROM_WORKER), End(there)
        left.channel.start(asyncio.get_running_loop())
        right.channel.start(asyncio.get_running_loop())
        try:
            await test(left, right)
        finally:
            left.channel.close()
            right.channel.close()

    uvloop.run(asyncio.sleep(0))  # the first loop of a process keeps two descriptors
    before = open_descriptors()
    uvloop.run(body())
    assert open_descriptors() <= before  # fewer: what other tests of the process left is collected


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def pipe_with(text: bytes) -> int:
    """The reading end of a pipe that holds the text."""
    reading, writing = os.pipe()
    os.write(writing, text)
    os.close(writing)
    return reading


def read_and_close(descriptor: int) -> bytes:
    text = os.read(descriptor, 100)
    os.close(descriptor)
    return text


def test_messages_come_whole_and_in_order() -> None:
    async def test(left: End, right: End) -> None:
        sent = [Ask(1), Others({"\x00\u00ff": 2}), Reopen(), Take("unix:/x", 7, 0), Stop()]
        for message in sent:
            left.channel.send(message)
        right.channel.send(Applied(3))
        await right.until(lambda: len(right.messages) == len(sent))
        await left.until(lambda: bool(left.messages))
        assert right.messages == sent
        assert left.messages == [Applied(3)]

    run(test)


def test_each_descriptor_comes_with_its_own_message() -> None:
    async def test(left: End, right: End) -> None:
        for n in range(300):
            left.channel.send(Ask(n))
            left.channel.send(Take("a", n, n % 3), [pipe_with(b"%d.%d" % (n, k)) for k in range(n % 3)])
        await right.until(lambda: len(right.messages) == 600)
        for n in range(300):
            assert right.messages[2 * n + 1] == Take("a", n, n % 3)
            assert right.descriptors[2 * n] == []
            told = [read_and_close(descriptor) for descriptor in right.descriptors[2 * n + 1]]
            assert told == [b"%d.%d" % (n, k) for k in range(n % 3)]

    run(test)


def test_as_many_descriptors_as_the_kernel_takes() -> None:
    async def test(left: End, right: End) -> None:
        left.channel.send(Take("a", 1, MAX_DESCRIPTORS), [pipe_with(b"%d" % n) for n in range(MAX_DESCRIPTORS)])
        await right.until(lambda: bool(right.messages))
        assert [read_and_close(fd) for fd in right.descriptors[0]] == [b"%d" % n for n in range(MAX_DESCRIPTORS)]

    run(test)


def test_what_the_kernel_does_not_take_waits_and_keeps_its_order() -> None:
    async def test(left: End, right: End) -> None:
        bulk = "x" * 300_000
        for n in range(20):
            left.channel.send(Others({bulk: n}))
            left.channel.send(Take("a", n, 1), [pipe_with(b"%d" % n)])
        assert left.channel.backlog > 1_000_000
        await right.until(lambda: len(right.messages) == 40)
        assert left.channel.backlog == 0
        assert [next(iter(message.figures.values())) for message in right.messages[::2]] == list(range(20))
        assert [read_and_close(fds[0]) for fds in right.descriptors[1::2]] == [b"%d" % n for n in range(20)]

    run(test)


def test_closing_gives_up_what_was_not_sent_with_its_descriptors() -> None:
    async def test(left: End, right: End) -> None:
        for n in range(50):
            left.channel.send(Others({"x" * 100_000: n}), [pipe_with(b"")])
        assert left.channel.backlog
        left.channel.close()
        assert left.channel.backlog == 0
        await right.until(lambda: bool(right.ends))
        for descriptors in right.descriptors:
            for descriptor in descriptors:
                os.close(descriptor)
        assert left.ends == []  # its own doing

    run(test)


def test_sending_on_a_closed_channel_closes_the_descriptors() -> None:
    async def test(left: End, right: End) -> None:
        left.channel.close()
        left.channel.send(Take("a", 1, 1), [pipe_with(b"")])

    run(test)


def test_the_other_side_is_gone() -> None:
    async def test(left: End, right: End) -> None:
        left.channel.send(Ask(1))
        left.channel.close()
        await right.until(lambda: bool(right.ends))
        assert right.messages == [Ask(1)]
        assert right.channel.closed
        right.channel.send(Applied(1))
        await asyncio.sleep(0)
        assert len(right.ends) == 1

    run(test)


def test_what_was_said_before_the_end_is_heard_though_nobody_listens_any_more() -> None:
    """Sending finds the end first: what is still to be read is not lost by that, and comes before the end."""

    async def test(left: End, right: End) -> None:
        for number in range(3):
            left.channel.send(Ask(number))
        left.channel.close()
        descriptor = pipe_with(b"")
        right.channel.send(Take("a", 1, 1), [descriptor])
        right.channel.send(Applied(1))
        assert (right.channel.closed, right.channel.backlog, right.ends) == (False, 0, [])
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
        await right.until(lambda: bool(right.ends))
        assert right.messages == [Ask(0), Ask(1), Ask(2)]
        assert right.ends == ["closed by the other side"]

    run(test)


def test_hearing_out_one_that_is_no_more() -> None:
    """All of it at once, however long, and whatever is answered to it; the end is no news then."""

    async def test(left: End, right: End) -> None:
        words = [Others({"x" * 300: number}) for number in range(100)]
        for word in words:
            left.channel.send(word)
        assert left.channel.backlog == 0  # the kernel has all of it
        left.channel.close()
        right.answer = Applied(1)
        right.channel.hear_out()
        assert right.messages == words
        assert (right.channel.closed, right.ends) == (True, [])
        right.channel.hear_out()

    run(test)


def test_close_inside_a_message_ends_the_delivery() -> None:
    async def test(left: End, right: End) -> None:
        right.channel._on_message = lambda message, descriptors: right.channel.close()
        left.channel.send(Ask(1))
        left.channel.send(Ask(2))
        await left.until(lambda: bool(left.ends))

    run(test)


def test_one_encoding_for_many_channels() -> None:
    async def test(left: End, right: End) -> None:
        body = encode(Take("a", 1, 1))
        left.channel.send_encoded(body, [pipe_with(b"x")])
        left.channel.send_encoded(body)
        left.channel.send_encoded(encode(Stop()))
        await right.until(lambda: len(right.messages) == 3)
        assert right.messages == [Take("a", 1, 1), Take("a", 1, 1), Stop()]
        assert [read_and_close(fd) for fd in right.descriptors[0]] == [b"x"]
        left.channel.close()
        left.channel.send_encoded(body, [pipe_with(b"x")])

    run(test)


def test_a_message_that_raises_is_obeyed_once_and_the_next_ones_come() -> None:
    """Also when all of them came at once; what it raised is in the hands of the loop."""

    async def test(left: End, right: End) -> None:
        raised: list[str] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: raised.append(f"{context['message']}: {type(context['exception']).__name__}")
        )
        note = right.channel._on_message

        def heard(message: Any, descriptors: list[int]) -> None:
            note(message, descriptors)
            if message == Ask(1):
                raise msgspec.MsgspecError  # a handler's is not the channel's

        right.channel._on_message = heard
        for n in range(3):
            left.channel.send(Ask(n))
        left.channel.send(Take("a", 1, 1), [pipe_with(b"x")])
        await right.until(lambda: len(right.messages) == 4)
        assert right.messages == [Ask(0), Ask(1), Ask(2), Take("a", 1, 1)]
        assert [read_and_close(fd) for fd in right.descriptors[3]] == [b"x"]
        assert raised == ["obeying Ask: MsgspecError"]
        assert right.ends == []

    run(test)


LITTLE_ROOM = """
import asyncio, os, resource, socket, sys
from proxy.ipc.channel import Channel
from proxy.ipc.messages import TO_WORKER

async def main():
    end = asyncio.Event()

    def heard(message, descriptors):
        print(type(message).__name__, len(descriptors), flush=True)
        for descriptor in descriptors:
            os.close(descriptor)

    def cut(reason):
        print(reason, flush=True)
        end.set()

    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + int(sys.argv[2]) + 4, used + 4 + int(sys.argv[2])))
    channel = Channel(socket.socket(fileno=int(sys.argv[1])), TO_WORKER, heard, cut)
    channel.start(asyncio.get_running_loop())
    await end.wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("room", [0, 3])
def test_a_process_without_room_for_descriptors_gets_the_messages(room: int) -> None:
    """With those descriptors that found room; the others after it come with all of theirs, once there is room again."""

    async def test() -> None:
        here, there = pair()
        with there:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", LITTLE_ROOM, str(there.fileno()), str(room),
                pass_fds=[there.fileno()], stdout=subprocess.PIPE,
            )  # fmt: skip
        end = End(here, FROM_WORKER)
        end.channel.start(asyncio.get_running_loop())
        for count in (50, 0, 1, 100, 1):
            end.channel.send(Take("a", 1, count), [pipe_with(b"") for _ in range(count)])
        end.channel.send(Stop())
        end.channel.close()
        told, _ = await process.communicate()
        lines = told.decode().splitlines()
        counts = [int(line.split()[1]) for line in lines[:-1]]
        assert [line.split()[0] for line in lines] == ["Take"] * 5 + ["Stop", "closed"]
        assert lines[-1] == "closed by the other side"
        assert room <= counts[0] < 50
        assert counts[1:] == [0, 1, counts[0], 1, 0]

    asyncio.run(test())


def frame(body: bytes, descriptors: int = 0) -> bytes:
    return struct.pack("<IB", len(body), descriptors) + body


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (frame(b"\xc1"), "cannot be read"),
        (frame(b"\x93\xa3Ask"), "cannot be read"),
        (frame(b"\x91\xa5Nosuc"), "cannot be read"),
        (frame(b"\x92\xa3Ask\x01", descriptors=1), "without its descriptors"),
    ],
)
def test_what_makes_no_sense_ends_the_channel(sent: bytes, reason: str) -> None:
    async def test() -> None:
        here, there = pair()
        with here:
            end = End(there)
            end.channel.start(asyncio.get_running_loop())
            here.sendall(sent)
            await end.until(lambda: bool(end.ends))
        assert reason in end.ends[0]
        assert end.messages == []

    uvloop.run(test())


def test_a_frame_cut_at_any_byte() -> None:
    async def test() -> None:
        whole = frame(b"\x92\xa3Ask\x05") + frame(b"\x91\xa4Stop")
        for cut in range(1, len(whole)):
            here, there = pair()
            with here:
                end = End(there)
                end.channel.start(asyncio.get_running_loop())
                here.sendall(whole[:cut])
                await turn()
                here.sendall(whole[cut:])
                await end.until(lambda end=end: len(end.messages) == 2)  # type: ignore[misc]
                assert end.messages == [Ask(5), Stop()]
                end.channel.close()

    def turn() -> Awaitable[None]:
        return asyncio.sleep(0.001)  # the first part is read alone; if not, the cut is merely somewhere else

    uvloop.run(test())


# A program, for it gives its privileges away: root may have any number of descriptors on their way.
IN_FLIGHT = """
import asyncio, os, resource, socket
from proxy.ipc.channel import Channel, pair
from proxy.ipc.messages import FROM_WORKER, TO_WORKER, Take

resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
if os.geteuid() == 0:
    os.setuid(65534)

async def play():
    loop = asyncio.get_running_loop()
    here, there = pair()
    ended, taken = [], []
    sender = Channel(here, FROM_WORKER, lambda message, descriptors: None, ended.append)
    sender.start(loop)
    for number in range(150):
        sender.send(Take("x", number, 1), [os.open("/dev/null", os.O_RDONLY)])
        if sender.backlog:
            break
    print("waits after", number, "ended", ended)
    def take(message, descriptors):
        taken.append(message.first_id)
        for descriptor in descriptors:
            os.close(descriptor)
    receiver = Channel(there, TO_WORKER, take, ended.append)
    receiver.start(loop)
    while len(taken) <= number:
        await asyncio.sleep(0.01)
    assert taken == list(range(number + 1)) and sender.backlog == 0
    sender.close()
    receiver.close()
    print("taken", ended)

asyncio.run(play())
"""


def test_as_many_descriptors_are_on_their_way_as_the_kernel_allows() -> None:
    """It is no end of the channel: they go when the other side has taken some."""
    done = subprocess.run([sys.executable, "-c", IN_FLIGHT], capture_output=True, text=True, timeout=30, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert int(first.split()[2]) < 149
    assert first.endswith("ended []")
    assert last == "taken []"
