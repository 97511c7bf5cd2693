"""CLIENT LIST, KILL, UNBLOCK, PAUSE and UNPAUSE: the part of the CLIENT family about the clients of all workers.

Why: each worker knows its own clients only; the answer is made of what all of them say (ServeContext.inquire). Called
through serve.table, and by worker.inquiries for the share of this worker in everybody's questions (ANSWERERS).

Invariants: as serve.local. An answerer does little between two pieces, for others are served in between. A client has
one such question under way, and nothing further of it is carried out before the answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import msgspec

from proxy.resp import encode, errors
from proxy.serve import client_filter
from proxy.serve.client import client_line
from proxy.serve.context import Answer, Answerers, ClientLike, Commands, Inquiry, ServeContext
from proxy.serve.words import OK, integer

UNBLOCK_REASON: Final = errors.line("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")
NO_SUCH_CLIENT: Final = errors.line("ERR No such client")
PAUSE_MODE: Final = errors.line("ERR CLIENT PAUSE mode must be WRITE or ALL")
TIMEOUT_NOT_AN_INTEGER: Final = errors.line("ERR timeout is not an integer or out of range")
TIMEOUT_NEGATIVE: Final = errors.line("ERR timeout is negative")
TIMEOUT_OUT_OF_RANGE: Final = errors.line("ERR timeout is out of range")
NO_MAIN_PROCESS: Final = errors.line("ERR the proxy's main process does not answer; not all clients may have been told")
_LONGEST: Final = 2**63 - 1
_LEVELS: Final = {b"WRITE": 1, b"ALL": 2}

_unblocked = msgspec.msgpack.Decoder(tuple[int, bool])
_Pause = tuple[int, int]  # level, until_ns; see ServeContext.pause
_pauses = msgspec.msgpack.Decoder(tuple[_Pause, str, _Pause, int])
_unpauses = msgspec.msgpack.Decoder(tuple[str, int])


# -- LIST ----------------------------------------------------------------------------------------------------------


def _client_list(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """Sorted by id, which is the order in which they came, as Redis's list is."""
    if len(args) == 3:
        return errors.SYNTAX
    wanted = client_filter.parse(ctx, client, args[2:], skip_me=False)
    if isinstance(wanted, bytes):
        return wanted
    if client.pending:
        return None
    inquiry = Inquiry("client|list", client_filter.encode(wanted), _sorted_lines, shared=True)
    return ctx.inquire(inquiry, lambda text: encode.verbatim(text, "txt", client.proto))


def _list_own(ctx: ServeContext, body: bytes) -> Iterator[bytes]:
    now_s = time.time()
    fits = client_filter.tester(client_filter.decode(body))
    for client in sorted(ctx.clients(), key=lambda client: client.id):
        listed = client.fd >= 0 and not client.killed and fits(client, now_s)
        yield client_line(client, now_s, client.last_command) + b"\n" if listed else b""


def _sorted_lines(parts: list[bytes], missing: int) -> bytes:
    lines = b"".join(parts).splitlines(keepends=True)
    lines.sort(key=lambda line: int(line[3 : line.index(b" ")]))
    return b"".join(lines)


# -- KILL ----------------------------------------------------------------------------------------------------------


def _client_kill(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """CLIENT KILL address | filter value [filter value ...]. The client itself goes last, after its reply."""
    old = len(args) == 3
    if old:
        wanted = client_filter.parse(ctx, client, [b"ADDR", args[2]], skip_me=False)
    else:
        wanted = client_filter.parse(ctx, client, args[2:], skip_me=True)
    if isinstance(wanted, bytes):
        return wanted
    if client.pending:
        return None
    suicide = client_filter.tester(wanted)(client, time.time())
    wanted.skip = client.id

    def reply(killed: int) -> bytes:
        if suicide:
            client.kill_after_reply()
        killed += suicide
        if old:
            return OK if killed else NO_SUCH_CLIENT
        return encode.integer(killed)

    return ctx.inquire(Inquiry("client|kill", client_filter.encode(wanted), _total), reply)


def _kill_own(ctx: ServeContext, body: bytes) -> Iterator[bytes]:
    now_s = time.time()
    fits = client_filter.tester(client_filter.decode(body))
    killed = 0
    for client in list(ctx.clients()):
        if client.fd >= 0 and not client.killed and fits(client, now_s):
            client.kill()
            killed += 1
        yield b""
    yield b"%d\n" % killed


def _total(parts: list[bytes], missing: int) -> int:
    return sum(map(int, b"".join(parts).split()))


# -- UNBLOCK -------------------------------------------------------------------------------------------------------


def _client_unblock(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """CLIENT UNBLOCK id [TIMEOUT|ERROR]; words after that are ignored, as Redis ignores them."""
    if len(args) == 4 and args[3].upper() not in (b"TIMEOUT", b"ERROR"):
        return UNBLOCK_REASON
    number = integer(args[2])
    if number is None:
        return errors.NOT_AN_INTEGER
    if client.pending:
        return None
    body = msgspec.msgpack.encode((number, len(args) == 4 and args[3].upper() == b"ERROR"))
    return ctx.inquire(Inquiry("client|unblock", body, _total), encode.integer)


def _unblock_own(ctx: ServeContext, body: bytes) -> Iterator[bytes | None]:
    """Its node is asked to end the wait, and says whether it has: whatever it was about to answer comes first."""
    number, error = _unblocked.decode(body)
    said: list[bool] = []
    for client in list(ctx.clients()):
        if client.id == number and client.blocked and not client.killed:
            client.unblock(error, said.append)
            while not said:
                yield None
    yield b"%d\n" % sum(said)


# -- PAUSE, UNPAUSE ------------------------------------------------------------------------------------------------


def _client_pause(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """CLIENT PAUSE milliseconds [WRITE|ALL]; words after that are ignored, as Valkey ignores them."""
    level = 2
    if len(args) == 4:
        level = _LEVELS.get(args[3].upper(), 0)
        if not level:
            return PAUSE_MODE
    timeout_ms = integer(args[2])
    if timeout_ms is None:
        return TIMEOUT_NOT_AN_INTEGER
    if timeout_ms < 0:
        return TIMEOUT_NEGATIVE
    if timeout_ms > _LONGEST - time.time_ns() // 1_000_000:
        return TIMEOUT_OUT_OF_RANGE
    pause = level, min(time.monotonic_ns() + timeout_ms * 1_000_000, _LONGEST)
    # With what is in force: a worker that starts later is told the last PAUSE only, and the last UNPAUSE.
    return _tell(ctx, client, "client|pause", (pause, client.address, ctx.paused(), ctx.unpaused_ns))


def _client_unpause(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    return _tell(ctx, client, "client|unpause", (client.address, time.monotonic_ns()))


def _tell(ctx: ServeContext, client: ClientLike, kind: str, order: tuple[object, ...]) -> Answer:
    if client.pending:
        return None
    body, lasting = msgspec.msgpack.encode(order), kind == "client|pause"
    inquiry = Inquiry(kind, body, lambda parts, missing: missing, everyone=True, lasting=lasting)
    return ctx.inquire(inquiry, lambda missing: OK if missing >= 0 else NO_MAIN_PROCESS)


def _longer(pause: _Pause, other: _Pause) -> _Pause:
    """A pause on top of the one in force: none becomes shorter, or milder (pauseClientsByClient)."""
    return max(pause[0], other[0]), max(pause[1], other[1])


def _pause_own(ctx: ServeContext, body: bytes) -> Iterator[bytes]:
    pause, who, before, unpaused_ns = _pauses.decode(body)
    if unpaused_ns == ctx.unpaused_ns:  # else another client has ended that one, while this order was on its way
        pause = _longer(pause, before)
    ctx.pause(*_longer(pause, ctx.paused()), who)
    yield b""


def _unpause_own(ctx: ServeContext, body: bytes) -> Iterator[bytes]:
    who, ctx.unpaused_ns = _unpauses.decode(body)
    ctx.pause(0, 0, who)
    yield b""


COMMANDS: Commands = {
    b"client|kill": (-3, _client_kill),
    b"client|list": (-2, _client_list),
    b"client|pause": (-3, _client_pause),
    b"client|unblock": (-3, _client_unblock),
    b"client|unpause": (2, _client_unpause),
}

ANSWERERS: Answerers = {
    "client|kill": _kill_own,
    "client|list": _list_own,
    "client|pause": _pause_own,
    "client|unblock": _unblock_own,
    "client|unpause": _unpause_own,
}
