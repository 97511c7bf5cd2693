"""The predecessor's end of a hand-over, on a loop in this process, where moments can be chosen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from proxy import __version__
from proxy.supervisor import handover as module
from proxy.supervisor.handover import HandoverError, HandoverServer, Taken, take_over
from proxy.system.sockets import ListenError

HOST = "127.0.0.1"


class Stage:
    """A server that offers `sockets` at `path`; `over` counts the successors that serve."""

    def __init__(self, path: str, **options: Any) -> None:
        self.path = path
        self.sockets: list[tuple[str, str, socket.socket]] = []
        self.over = 0
        self.server = self.serve(**options)

    def serve(self, **options: Any) -> HandoverServer:
        return HandoverServer(asyncio.get_running_loop(), self.path, self._offer, self._taken, **options)

    def _offer(self) -> list[tuple[str, str, int]]:
        return [(kind, name, sock.fileno()) for kind, name, sock in self.sockets]

    def _taken(self) -> None:
        self.over += 1

    async def take(self) -> Taken:
        taken = await asyncio.to_thread(take_over, self.path, 10.0)
        assert taken is not None
        return taken


def play(scene: Callable[[Stage], Awaitable[None]], path: str, **options: Any) -> None:
    async def main() -> None:
        stage = Stage(path, **options)
        with contextlib.ExitStack() as stack:
            stage.sockets = [
                (kind, f"{kind}-{place}", stack.enter_context(socket.create_server((HOST, 0))))
                for place, kind in enumerate(("listener", "admin", "listener"))
            ]
            try:
                async with asyncio.timeout(30):
                    await scene(stage)
            finally:
                stage.server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "handover")


def test_what_is_taken_over(path: str) -> None:
    async def scene(stage: Stage) -> None:
        before = len(os.listdir("/proc/self/fd"))
        taken = await stage.take()
        assert (taken.pid, taken.version) == (os.getpid(), __version__)
        assert stage.server.taking
        admin = taken.of("admin")
        assert [sock.getsockname() for sock in admin] == [stage.sockets[1][2].getsockname()]
        assert taken.of("admin") == []
        assert [(kind, name) for kind, name, _ in taken.sockets] == [
            ("listener", "listener-0"),
            ("listener", "listener-2"),
        ]
        assert all(not sock.getblocking() for _, _, sock in taken.sockets)
        assert taken.ready() is None
        assert taken.sockets == []  # nobody would serve their queues
        await until(lambda: stage.over)
        taken.close()
        for sock in admin:
            sock.close()
        assert len(os.listdir("/proc/self/fd")) == before - 1  # the predecessor's own
        await asyncio.sleep(0.05)
        assert stage.over == 1

    play(scene, path)


def test_any_number_of_sockets(path: str) -> None:
    async def scene(stage: Stage) -> None:
        three = stage.sockets
        for count in (0, 252, 253, 505, 506, 600):
            stage.sockets = [("listener", f"{HOST}:{place}", three[place % 3][2]) for place in range(count)]
            taken = await stage.take()
            assert [name for _, name, _ in taken.sockets] == [name for _, name, _ in stage.sockets]
            assert [sock.getsockname() for _, _, sock in taken.sockets] == [
                sock.getsockname() for _, _, sock in stage.sockets
            ]
            taken.close()
            await until(lambda: not stage.server.taking)
        stage.sockets = three

    play(scene, path)


def test_more_than_can_be_sent_at_once_is_not_sent(path: str) -> None:
    """And then nothing has happened."""

    async def scene(stage: Stage) -> None:
        three = stage.sockets
        stage.sockets = [("listener", "x" * 500_000, three[0][2])]
        with pytest.raises(HandoverError, match="it ends the conversation"):
            await stage.take()
        assert not stage.server.taking
        stage.sockets = three
        (await stage.take()).close()

    play(scene, path)


def test_a_successor_that_says_nothing_is_given_up(path: str) -> None:
    async def scene(stage: Stage) -> None:
        taken = await stage.take()
        await until(lambda: not stage.server.taking)
        assert taken.ready() == "the predecessor goes on: no word within 0.05 s"
        assert taken.refused
        taken.close()
        again = await stage.take()
        assert again.ready() is None
        assert not again.refused
        await until(lambda: stage.over)
        again.close()

    play(scene, path, patience_s=0.05)


def test_ready_at_the_last_moment_counts(path: str) -> None:
    """The loop is busy when READY comes and when the time is up, and finds both."""

    async def scene(stage: Stage) -> None:
        taken = await stage.take()
        (talk,) = stage.server._talks
        assert taken.ready() is None
        talk._late("no word")
        assert stage.over == 1
        assert not stage.server.taking
        taken.close()

    play(scene, path)


def test_after_the_last_moment_it_is_an_error(path: str) -> None:
    """Also when it comes between the kernel's refusal and the end of the conversation."""

    async def scene(stage: Stage) -> None:
        taken = await stage.take()
        (talk,) = stage.server._talks
        ended: list[str | None] = []
        end = talk.end

        def ready_first(reason: str = "") -> None:
            talk.end = end  # type: ignore[method-assign]
            ended.append(taken.ready())
            end(reason)

        talk.end = ready_first  # type: ignore[method-assign]
        talk._late("no word")
        assert ended == ["the predecessor goes on: no word"]
        assert (stage.over, stage.server.taking) == (0, False)
        taken.close()

    play(scene, path)


def test_who_does_not_greet_is_sent_away(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GREETING_S", 0.05)

    async def scene(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as silent:
            silent.setblocking(False)
            await loop.sock_connect(silent, path)
            assert msgspec.json.decode(await loop.sock_recv(silent, 1000))["error"] == "no greeting"
            assert await loop.sock_recv(silent, 1000) == b""

    play(scene, path)


def test_silent_connections_are_bounded_and_do_not_keep_a_successor_away(path: str) -> None:
    async def scene(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            guests = []
            for _ in range(module._GUESTS):
                guests.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
                guests[-1].setblocking(False)
                await loop.sock_connect(guests[-1], path)
            with pytest.raises(HandoverError, match="too many connections"):
                await stage.take()
            guests[0].close()
            (await stage.take()).close()

    play(scene, path)


def test_the_file(path: str) -> None:
    """Nobody else may, a stale one is replaced, a living one is not."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)

    async def scene(stage: Stage) -> None:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with pytest.raises(ListenError, match="the address is in use"):
            stage.serve()
        (await stage.take()).close()
        await until(lambda: not stage.server.taking)
        stage.server.close()
        assert not os.path.exists(path)
        stage.server.close()  # twice is harmless

    play(scene, path)


def test_the_path_goes_on_with_the_successor(path: str) -> None:
    """The same file all along; who comes when the predecessor has gone and the successor not begun waits."""

    async def scene(stage: Stage) -> None:
        file = os.stat(path).st_ino
        for _ in range(3):
            taken = await stage.take()
            before = stage.over
            assert taken.ready() is None
            await until(lambda: stage.over > before)  # noqa: B023
            third = asyncio.create_task(stage.take())
            await asyncio.sleep(0.02)
            assert not third.done()
            stage.server = stage.serve(taken=taken)
            taken.close()  # the socket is the server's
            waited = await third
            waited.close()
            await until(lambda: not stage.server.taking)
            assert os.stat(path).st_ino == file
        stage.server.close()
        assert not os.path.exists(path)

    play(scene, path)


@pytest.mark.parametrize("instead", ["nothing", "stale", "another"])
def test_a_path_that_was_lost_meanwhile_is_made_anew(path: str, instead: str) -> None:
    async def scene(stage: Stage) -> None:
        taken = await stage.take()
        os.unlink(path)
        with contextlib.ExitStack() as stack:
            if instead != "nothing":
                other = stack.enter_context(socket.socket(socket.AF_UNIX))
                other.bind(path)
                if instead == "another":
                    other.listen()
                else:
                    other.close()
            assert taken.ready() is None
            await until(lambda: stage.over)
            if instead == "another":
                with pytest.raises(ListenError):
                    stage.serve(taken=taken)
            else:
                stage.server = stage.serve(taken=taken)
                (await stage.take()).close()
        taken.close()

    play(scene, path)


def test_a_predecessor_that_ends_while_it_is_taken_over(path: str) -> None:
    """SIGTERM between the two steps: the successor has what it needs, the path included."""

    async def scene(stage: Stage) -> None:
        taken = await stage.take()
        stage.server.close()
        assert os.path.exists(path)
        assert taken.ready() == "the predecessor is gone: Broken pipe"
        assert not taken.refused
        assert stage.over == 0
        stage.server = stage.serve(taken=taken)
        (await stage.take()).close()
        taken.close()

    play(scene, path)


def test_a_path_the_predecessor_goes_on_with_is_not_shared(path: str) -> None:
    async def scene(stage: Stage) -> None:
        taken = await stage.take()
        await until(lambda: not stage.server.taking)
        assert taken.ready() is not None
        with pytest.raises(ListenError, match="the address is in use"):
            stage.serve(taken=taken)
        (await stage.take()).close()
        taken.close()

    play(scene, path, patience_s=0.05)


def test_out_of_descriptors(path: str, few_descriptors: Callable[[int], None]) -> None:
    """No spinning: the connection waits in the queue."""

    async def scene(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            few_descriptors(0)
            await loop.sock_connect(client, path)
            await until(lambda: stage.server._pause)
            few_descriptors(1)
            await loop.sock_sendall(client, b"hello\n")
            assert b"not a greeting" in await loop.sock_recv(client, 1000)

    play(scene, path)
