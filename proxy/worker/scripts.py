"""Scripts a worker has to do with: told to the main process, which remembers them for the whole proxy, and asked back.

Why: a node that joined, was promoted or has restarted knows none of the scripts that clients call by their SHA1; it is
given them (forward.redirect) from here, or from the main process (control.scripts) when another worker has seen them.
Called by the data path (ScriptKeeper), serve.scripts (loaded, flush) and conversation.

Invariants: nothing here blocks. What goes to and from the main process is bounded in messages and bytes per second,
whatever clients do, and so is what is held. After `forget` nothing older is known, and what the main process is told
carries its number (`generation`), by which it knows what was seen before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from proxy.commands.script_memory import ScriptMemory, sha1_of
from proxy.forward.ask import Ask, Later
from proxy.forward.parking import Parking
from proxy.forward.scripts import Scripts
from proxy.ipc import messages
from proxy.resp.encode import encode_command

OWN_MEMORY: Final = 4 << 20  # of a worker; more is the main process's
ANSWER_S: Final = 0.5  # for the main process to know a script; what takes longer is a NOSCRIPT
ASKED_MAX: Final = 1024  # scripts asked for at a time
BYTES_PER_S: Final = 8 << 20  # bodies between this worker and the main process; twice that at once
QUESTION: Final = 16 << 10  # bytes a question counts for: 500 of them a second
FLUSH_S: Final = 2.0  # for all workers to forget; a client is not kept waiting longer
VAIN_MAX: Final = 8  # repairs that did not help, until a script is let be for so long
VAIN_S: Final = 1.0


class WorkerScripts:
    """One per worker. limit: `commands.script_memory`, bytes, of the whole proxy; generation: the main process's."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        send: Callable[[messages.ScriptNews], None],
        scripts: Scripts,
        parking: Parking,
        on_raised: Callable[[str, BaseException], None],
        *,
        limit: int,
        generation: int,
    ) -> None:
        self._loop, self._send, self._scripts, self._parking = loop, send, scripts, parking
        self.raised = on_raised
        self._memory = ScriptMemory(min(limit, OWN_MEMORY))
        self._generation = generation
        self._asked: dict[bytes, float] = {}  # sha -> when, loop time
        self._vain: dict[bytes, tuple[int, float]] = {}  # sha -> how often, since when
        self._credit = 2 * BYTES_PER_S
        self._credited_s = loop.time()
        self._flushes: dict[int, tuple[Later, Callable[[], Ask]]] = {}
        self._flush = 0
        scripts.keeper = self

    # -- the data path's side ------------------------------------------------------------------------------------

    def seen(self, body: bytes, remember: bool) -> bytes:
        """A client runs this script; its SHA1 in hex."""
        sha = sha1_of(body)
        if remember:
            self._remember(sha, body, loaded=False)
        return sha

    def load(self, sha: bytes) -> bytes | bool | None:
        """The SCRIPT LOAD for a script; None = unknown, False = asked: Parking.script_answered will be called."""
        now_s = self._loop.time()
        if not self._memory.limit or self._is_vain(sha, now_s):
            return None
        if (body := self.body(sha)) is not None:
            return encode_command("SCRIPT", "LOAD", body)
        asked_s = self._asked.get(sha)
        if asked_s is not None and now_s - asked_s <= 2 * ANSWER_S:
            return False if now_s - asked_s <= ANSWER_S else None
        if len(self._asked) >= ASKED_MAX:
            self._asked = {one: at_s for one, at_s in self._asked.items() if now_s - at_s <= 2 * ANSWER_S}
        if len(self._asked) >= ASKED_MAX or not self._pay(QUESTION):
            return None
        self._asked[sha] = now_s
        self._loop.call_later(ANSWER_S, self._late, sha, now_s)
        self._send(messages.ScriptWanted(sha))
        return False

    def in_vain(self, sha: bytes) -> None:
        """A node that has been given this script says again that it has none."""
        now_s = self._loop.time()
        count, since_s = self._vain.get(sha, (0, now_s))
        if len(self._vain) >= ASKED_MAX:
            self._vain.clear()
        self._vain[sha] = (count + 1, since_s) if now_s - since_s < VAIN_S else (1, now_s)

    # -- serve's side --------------------------------------------------------------------------------------------

    def body(self, sha: bytes) -> bytes | None:
        """The body of a script, if this worker has it. sha: 40 lower-case hex digits."""
        return self._memory.get(sha)

    def loaded(self, body: bytes) -> None:
        """A client has loaded this script on the servers."""
        self._remember(sha1_of(body), body, loaded=True)

    def flush(self, ask: Callable[[], Ask]) -> Later:
        """Has every worker forget all scripts, then asks the servers: the answer is theirs."""
        later = Later(barrier=True)  # what the client calls next must not find them on the servers any more
        self._flush += 1
        self._flushes[self._flush] = later, ask
        self._loop.call_later(FLUSH_S, self.flushed, self._flush)
        self._send(messages.FlushScripts(self._flush))
        return later

    # -- what the main process says ------------------------------------------------------------------------------

    def answered(self, sha: bytes, body: bytes | None) -> None:
        """The main process knows the script, or says that nobody does."""
        self._asked.pop(sha, None)
        if body is not None:
            self._credit -= len(body)
            self._memory.add(sha, body, keep=True)
        self._parking.script_answered(sha, body is not None)

    def forget(self, generation: int) -> None:
        """All scripts are forgotten; 0: the main process has forgotten some, which it may be told again."""
        if generation:
            self._generation = generation
            self._memory.clear()
        self._scripts.forget()

    def flushed(self, number: int) -> None:
        """Nobody knows a script any more: the servers are to forget them, too."""
        if (waiting := self._flushes.pop(number, None)) is not None:
            later, ask = waiting
            later.answer(ask())

    def resize(self, limit: int) -> None:
        """Another `commands.script_memory`."""
        self._memory.resize(min(limit, OWN_MEMORY))
        self._scripts.forget()

    # -- within --------------------------------------------------------------------------------------------------

    def _remember(self, sha: bytes, body: bytes, *, loaded: bool) -> None:
        if self._memory.takes(body):
            self._memory.add(sha, body, keep=loaded)
            if self._pay(len(body)):
                self._send(messages.ScriptSeen(self._generation, sha, body, loaded))

    def _late(self, sha: bytes, asked_s: float) -> None:
        """The main process has had its time: who waits is told what the node said."""
        if self._asked.get(sha) == asked_s:
            self._parking.script_answered(sha, False)

    def _is_vain(self, sha: bytes, now_s: float) -> bool:
        count, since_s = self._vain.get(sha, (0, 0.0))
        return count >= VAIN_MAX and now_s - since_s < VAIN_S

    def _pay(self, size: int) -> bool:
        """Whether so many bytes may go; they are counted then."""
        now_s = self._loop.time()
        earned = int((now_s - self._credited_s) * BYTES_PER_S)
        if earned:
            self._credit = min(2 * BYTES_PER_S, self._credit + earned)
            self._credited_s = now_s
        if self._credit < size:
            return False
        self._credit -= size
        return True
