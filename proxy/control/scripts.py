"""The scripts of the whole proxy: remembered once, in the main process, bounded in bytes.

Why: a client of one worker may load a script, and a client of another one call it, on a node that has joined since; a
worker that replaces a dead one knows nothing. Workers tell what they see and ask for what they lack (worker.scripts).
Called by supervisor, with what workers say.

Invariants: what is held never exceeds the limit. After a flush nothing is known that a worker saw before it forgot: a
worker's words carry the generation it is in, and words of an older one do not count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from proxy.commands.script_memory import ScriptMemory
from proxy.ipc import messages

TELL_S: Final = 1.0  # between two notices that scripts have been forgotten for want of room

Answer = Callable[[messages.ScriptBody | messages.ScriptsFlushed], None]


class Scripts:
    """See the module.

    limit: `commands.script_memory`, bytes. forget(generation): has every worker forget, and returns when all have, or
    in bounded time; with 0 they only tell again what they see. Needs a running loop.
    """

    def __init__(self, limit: int, forget: Callable[[int], Awaitable[None]]) -> None:
        self.memory = ScriptMemory(limit)
        self.generation = 1
        self._forget = forget
        self._evicted = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._notice: asyncio.TimerHandle | None = None

    def resize(self, limit: int) -> None:
        """Another limit, in force at once."""
        if limit != self.memory.limit:
            self.memory.resize(limit)
            self._evicted = self.memory.evicted

    def heard(self, message: messages.ScriptNews, say: Answer) -> None:
        """What a worker says. say: to this worker."""
        match message:
            case messages.ScriptSeen(generation, sha, body, loaded):
                if generation == self.generation:
                    self.memory.add(sha, body, keep=loaded)
                    self._look_for_evictions()
            case messages.ScriptWanted(sha):
                say(messages.ScriptBody(sha, self.memory.get(sha)))
            case messages.FlushScripts(number):
                self.memory.clear()
                self.generation += 1
                self._go(self._flush(self.generation, number, say))

    async def stop(self) -> None:
        """Ends what is under way."""
        if self._notice is not None:
            self._notice.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _flush(self, generation: int, number: int, say: Answer) -> None:
        try:
            await self._forget(generation)
        finally:
            say(messages.ScriptsFlushed(number))

    def _look_for_evictions(self) -> None:
        """What was forgotten may be seen again: the workers, which tell of a script once, are to tell it again."""
        if self.memory.evicted != self._evicted and self._notice is None:
            self._notice = asyncio.get_running_loop().call_later(TELL_S, self._tell_again)

    def _tell_again(self) -> None:
        self._notice = None
        self._evicted = self.memory.evicted
        self._go(self._forget(0))

    def _go(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
