"""An instance of a proxy that tells every client its name and no more; a process of its own for test_handover.

python -m tests.unit.supervisor.instance NAME HANDOVER_PATH ADDRESS ... takes over what there is, and says so. `serve`
on standard input has it serve clients. It says `over` and ends when a successor has taken over, and ends on `stop` and
at the end of its input.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from proxy.config.models import Listener
from proxy.embedded import die_with_parent
from proxy.supervisor.acceptor import Doors
from proxy.supervisor.handover import HandoverServer, take_over
from proxy.system import log
from proxy.system.sockets import close_unused, open_listener

ROOT = Path(__file__).parents[3]


class Greeter:
    """Crew and member in one."""

    backlog = 0
    clients = 0

    def __init__(self, name: str) -> None:
        self._words = name.encode()

    def candidates(self) -> Sequence[Greeter]:
        return [self]

    def take(self, listener: str, first_id: int, descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.write(descriptor, self._words)
            os.close(descriptor)
        self.clients -= len(descriptors)


def say(*words: object) -> None:
    print(*words, flush=True)


async def live(name: str, path: str, addresses: Sequence[str]) -> None:
    loop = asyncio.get_running_loop()
    taken = take_over(path, 10.0)
    handed = taken.of("listener") if taken is not None else []
    listening = []
    for address in addresses:
        listening += open_listener(Listener.model_validate({"address": address}), [], handed)
    close_unused(handed)
    say(0 if taken is None else taken.pid, *(one.label for one in listening))
    doors = Doors(loop, Greeter(name), max_clients=1000)
    over = loop.create_future()
    commands: asyncio.Queue[str] = asyncio.Queue()
    loop.add_reader(0, lambda: commands.put_nowait(os.read(0, 100).decode().strip()))

    def handed_over() -> None:
        for one in listening:
            one.disown()
        say("over")
        over.set_result(None)

    if await commands.get() == "serve":
        for one in listening:
            doors.open(one)
        say("ready", None if taken is None else taken.ready())
        server = HandoverServer(
            loop,
            path,
            lambda: [("listener", one.label, one.sock.fileno()) for one in listening],
            handed_over,
            taken=taken,
        )
        say("serving")
        stop = asyncio.ensure_future(commands.get())
        await asyncio.wait([over, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        server.close()
    loop.remove_reader(0)
    doors.close_all()
    if taken is not None:
        taken.close()


class Instance:
    """The process, seen from the test."""

    def __init__(self, name: str, path: str, addresses: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.supervisor.instance", name, path, *addresses],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent(),
        )
        predecessor, *self.labels = self.hear()  # where it will listen
        self.predecessor = int(predecessor)  # its pid; 0 = there was none

    @property
    def pid(self) -> int:
        return self.process.pid

    def hear(self) -> list[str]:
        """The next line it says, in words."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def serve(self) -> None:
        """Has it serve clients, and waits until it does and the path of the hand-over is its."""
        self.tell("serve")
        assert self.hear() == ["ready", "None"]
        assert self.hear() == ["serving"]

    def ends(self) -> int:
        """Waits for its end; its exit code."""
        return self.process.wait(20)

    def __enter__(self) -> Instance:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


if __name__ == "__main__":
    log.setup("info", "logfmt")
    uvloop.run(live(sys.argv[1], sys.argv[2], sys.argv[3:]))
