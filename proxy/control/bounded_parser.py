"""A parser for redis-py that is given whole replies only, and none that is longer than LIMIT.

Why: control asks nodes for a few hundred kilobytes at most. A broken node may send endless replies, or the head of an
array of a billion elements, for which hiredis makes room at once; neither may cost the main process memory or time.
Called by node_client.

Invariant: hiredis sees nothing before the reply is whole, so the elements it makes room for are there.
"""

from __future__ import annotations

from typing import Any, Final

from redis._parsers import _AsyncHiredisParser
from redis.exceptions import ConnectionError

from proxy.resp.errors import ProtocolFault
from proxy.resp.readers import ReplyReader

LIMIT: Final = 2 << 20  # bytes of one reply: CLUSTER SHARDS of 1,000 nodes and 16,384 ranges has half of it


class BoundedParser(_AsyncHiredisParser):
    """See the module. ConnectionError for a longer reply, or bytes that are none."""

    def on_connect(self, connection: Any) -> None:
        """A connection is open."""
        super().on_connect(connection)  # type: ignore[no-untyped-call]
        self._whole = ReplyReader()
        self._waiting = 0  # bytes of the reply that is not whole yet

    async def read_from_socket(self) -> bool:
        """Returns when a reply more is whole; True."""
        data = b""  # at first, for a fault behind the replies that were whole
        while True:
            try:
                frames = self._whole.feed(data)
            except ProtocolFault as error:
                raise ConnectionError("it does not speak RESP") from error
            self._waiting = 0 if frames else self._waiting + len(data)
            if self._waiting > LIMIT or any(len(frame) > LIMIT for frame, _, _ in frames):
                raise ConnectionError(f"a reply is longer than {LIMIT >> 20} MB")
            if frames:
                reader: Any = self._reader
                reader.feed(b"".join(frame for frame, _, _ in frames))
                return True
            data = await self._stream.read(self._read_size) if self._stream is not None else b""
            if not data:
                raise ConnectionError("Connection closed by server.")
