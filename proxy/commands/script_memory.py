"""Bodies of scripts by their SHA1, bounded in bytes.

Why: the main process remembers them for the whole proxy (control.scripts), a worker those it has to do with
(worker.scripts), by the same rules.

Invariant: `size` never exceeds `limit`. What is used least recently goes first, in two classes: scripts seen once
(`fresh`), and those that were loaded, used or seen again (`kept`). Fresh ones make room as soon as they hold more than
a quarter: a client that sends a new body with every EVAL drives out none but its own and other new ones.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

OVERHEAD: Final = 200  # bytes of an entry besides its body
BODY_MAX: Final = 1 << 20  # bytes; longer bodies are not remembered


def sha1_of(body: bytes) -> bytes:
    """The name of a script: 40 lower-case hex digits."""
    import hashlib  # here: most proxies see no script, and it is half a megabyte of a process

    return hashlib.sha1(body, usedforsecurity=False).hexdigest().encode()


class ScriptMemory:
    """See the module. limit: in bytes, 0 = nothing is remembered."""

    def __init__(self, limit: int) -> None:
        self.size = 0
        self.evicted = 0  # bodies so far
        self._fresh: OrderedDict[bytes, bytes] = OrderedDict()
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._fresh_size = 0
        self.limit = limit

    def __len__(self) -> int:
        return len(self._fresh) + len(self._kept)

    def takes(self, body: bytes) -> bool:
        """Whether it is short enough to be remembered: a quarter of the memory at most."""
        return len(body) <= BODY_MAX and len(body) + OVERHEAD <= self.limit // 4

    def get(self, sha: bytes) -> bytes | None:
        """The body of a script, which counts as a use."""
        body = self._fresh.get(sha)
        if body is not None:
            self._keep(sha, body)
            return body
        body = self._kept.get(sha)
        if body is not None:
            self._kept.move_to_end(sha)
        return body

    def add(self, sha: bytes, body: bytes, *, keep: bool = False) -> None:
        """Remembers it. keep: it was loaded, not just run."""
        if not self.takes(body) or self.get(sha) is not None:
            return
        size = len(body) + OVERHEAD
        self.size += size
        if keep:
            self._kept[sha] = body
        else:
            self._fresh[sha] = body
            self._fresh_size += size
        self._shrink()

    def clear(self) -> None:
        """Forgets all."""
        self._fresh.clear()
        self._kept.clear()
        self.size = self._fresh_size = 0

    def resize(self, limit: int) -> None:
        """Another limit, at once."""
        self.limit = limit
        self._shrink()

    def _keep(self, sha: bytes, body: bytes) -> None:
        del self._fresh[sha]
        self._fresh_size -= len(body) + OVERHEAD
        self._kept[sha] = body

    def _shrink(self) -> None:
        while self.size > self.limit:
            if self._fresh and (self._fresh_size > self.limit // 4 or not self._kept):
                _, body = self._fresh.popitem(last=False)
                self._fresh_size -= len(body) + OVERHEAD
            else:
                _, body = self._kept.popitem(last=False)
            self.size -= len(body) + OVERHEAD
            self.evicted += 1
