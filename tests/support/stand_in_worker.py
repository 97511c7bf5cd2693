"""A worker for the tests of the worker pool: it says what a worker says, forwards nothing, and has faults on demand.

python stand_in_worker.py DESCRIPTOR NUMBER FAULT. Every message it is sent after Start comes back as a Report whose
signs are its number, the message's name and the message in JSON. A client is greeted with its id, and counted as gone
when it closes.

Faults: `never` starts; `dies` at once; `version`: exits with 79; `bye`: says Bye unasked, and ends; `silent`: says
nothing more once it has started; `deaf`: does not obey Drain and Stop; `refuses`: cannot take new settings; `mute`:
does not answer; `cut`: ends its channel, but lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import mmap
import os
import socket
import sys
from typing import Any

import msgspec

from proxy.forward.counters import COUNTERS_SIZE, Counters
from proxy.ipc.channel import Channel
from proxy.ipc.messages import (
    TO_WORKER,
    Applied,
    Ask,
    Bye,
    Configure,
    Drain,
    ForgetScripts,
    Forgotten,
    Report,
    Retire,
    ScriptWanted,
    Start,
    Started,
    Status,
    Stop,
    Take,
)

STATUS_S = 0.1
EXIT_DIES = 3
EXIT_VERSION = 79


def word_of_closed() -> int:
    """Which 64-bit word of a worker's memory counts the clients that left by themselves."""
    memory = bytearray(COUNTERS_SIZE)
    words = memoryview(memory).cast("Q")
    counters = Counters(memory)
    for word in reversed(range(len(words))):
        words[word] = 1
        if counters.snapshot()["closed"]["client"]:
            return word
        words[word] = 0
    raise AssertionError("nothing counts them")


class StandIn:
    """One worker."""

    def __init__(self, descriptor: int, fault: str) -> None:
        self.fault = fault
        self.loop = asyncio.get_running_loop()
        self.end = self.loop.create_future()
        self.clients: set[socket.socket] = set()
        self.retiring = False
        self.words: memoryview
        self.channel = Channel(socket.socket(fileno=descriptor), TO_WORKER, self.heard, lambda reason: self.finish(1))
        self.channel.start(self.loop)

    def heard(self, message: Any, descriptors: list[int]) -> None:
        if not isinstance(message, Start) and self.fault != "silent":
            name, text = type(message).__name__, msgspec.json.encode(msgspec.to_builtins(message)).decode()
            self.channel.send(Report([sys.argv[2], name, text]))
        match message:
            case Start():
                self.start(descriptors[0])
            case Take():
                for place, taken in enumerate(descriptors):
                    self.take(message.first_id + place, socket.socket(fileno=taken))
            case Ask(number) if self.fault != "mute":
                self.tell(number)
            case Configure(number) if self.fault != "mute":
                self.channel.send(Applied(number, "cannot" if self.fault == "refuses" else ""))
            case ForgetScripts(number, generation) if self.fault != "mute":
                self.channel.send(ScriptWanted(b"%d" % generation))
                self.channel.send(Forgotten(number))
            case Retire():
                self.retiring = True
                self.part()
            case Drain() | Stop() if self.fault not in ("deaf", "silent"):
                self.channel.send(Bye())
                self.finish(0)

    def start(self, memory: int) -> None:
        self.words = memoryview(mmap.mmap(memory, COUNTERS_SIZE)).cast("Q")
        os.close(memory)
        match self.fault:
            case "dies":
                self.finish(EXIT_DIES)
            case "version":
                self.finish(EXIT_VERSION)
            case "bye":
                self.channel.send(Bye())
                self.finish(0)
            case "cut":
                self.channel.close()
            case "never":
                pass
            case _:
                self.channel.send(Started())
                self.tell_for_ever()

    def tell(self, number: int) -> None:
        self.channel.send(Status(number, 0, 0, len(self.clients), 0.0, 0, {}))

    def tell_for_ever(self) -> None:
        self.tell(0)
        if self.fault != "silent":
            self.loop.call_later(STATUS_S, self.tell_for_ever)

    def take(self, client_id: int, client: socket.socket) -> None:
        self.clients.add(client)
        with contextlib.suppress(BrokenPipeError):
            client.sendall(b"%d" % client_id)
        self.loop.add_reader(client.fileno(), self.left, client)

    def left(self, client: socket.socket) -> None:
        self.loop.remove_reader(client.fileno())
        client.close()
        self.clients.remove(client)
        self.words[WORD_OF_CLOSED] += 1
        self.part()

    def part(self) -> None:
        if self.retiring and not self.clients:
            self.channel.send(Bye())
            self.finish(0)

    def finish(self, code: int) -> None:
        if not self.end.done():
            self.end.set_result(code)


async def main() -> int:
    code: int = await StandIn(int(sys.argv[1]), sys.argv[3]).end
    return code


if __name__ == "__main__":
    faulthandler.enable()
    WORD_OF_CLOSED = word_of_closed()
    sys.exit(asyncio.run(main()))
