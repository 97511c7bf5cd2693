"""PROXY: the console in the product's own protocol. So far PAUSE, RESUME, INFO and HELP.

Why: what an operator does to the proxy itself, with the client that is at hand. Called through serve.table, and by
worker.inquiries for the share of this worker (ANSWERERS).

PAUSE holds what is for a node, or for all of them, in order, in all workers, and answers when what was sent there
before is answered: then the node can be restarted. RESUME first has the node connected to, and what is subscribed there
in force, in all workers, and only then lets go what was paused when it was given.

Others give orders meanwhile. They are obeyed in the same order by all workers, and whoever waited is told what has come
of his: the worker that he asked has obeyed whatever came before the last answer.

Invariants: answers to nobody but a client that is logged in as the user `admin`, whose password is
clients.admin_password. Every pause ends by itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Final

import msgspec

from proxy.forward.ask import Later
from proxy.resp import encode, errors
from proxy.serve.context import Answer, Answerers, ClientLike, Commands, Handler, Inquiry, NodePause, ServeContext
from proxy.serve.words import ADMIN_USER, OK, integer

DEFAULT_MS: Final = 60_000
LONGEST_MS: Final = 3_600_000
DRAINED_S: Final = 8.0  # for what was sent to a node to be answered: less than supervisor.relay.LONGEST_S
ALIVE_S: Final = 0.5  # a worker that waits says so that often: see worker.inquiries.SILENT_S

NO_ADMINISTRATORS: Final = errors.line(
    "NOPERM PROXY is for administrators, and there are none: set clients.admin_password, reload, AUTH admin <password>"
)
NO_ADMINISTRATOR: Final = errors.line("NOPERM PROXY is for administrators: AUTH admin <clients.admin_password>")
TIMEOUT: Final = errors.line(f"ERR timeout must be an integer from 1 to {LONGEST_MS} (milliseconds)")
ALL_PAUSED: Final = errors.line("ERR all nodes are paused: PROXY RESUME lets all of them go on")
NO_MAIN_PROCESS: Final = errors.line("ERR the proxy's main process does not answer; not all workers may have been told")

HELP: Final = (
    "PROXY <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "PAUSE [NODE <host:port | node id>] [<timeout-ms>]",
    "    Hold what is for the node (default: for all nodes), in order, until RESUME or the timeout",
    f"    ({DEFAULT_MS} by default, at most {LONGEST_MS}). Answers when what was sent there before is answered.",
    "    Another PAUSE of the same node sets its time anew.",
    "RESUME [NODE <host:port | node id>]",
    "    Let what is held go on (default: all of it).",
    "INFO",
    "    What is paused, and the nodes.",
    "HELP",
    "    Print this help.",
)

_pause = msgspec.msgpack.Decoder(NodePause)


def _for_administrators(handler: Handler) -> Handler:
    def checked(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
        if ctx.admin_password is None:
            return NO_ADMINISTRATORS
        if client.user != ADMIN_USER:
            return NO_ADMINISTRATOR
        return handler(ctx, client, args)

    return checked


def _help(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    return encode.array([encode.simple(line) for line in HELP])


def _info(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    pauses = ctx.node_pauses.present if ctx.node_pauses is not None else ()
    now_ns = time.monotonic_ns()
    lines = ["# Pauses", f"pauses:{len(pauses)}"]
    for n, pause in enumerate(pauses):
        left_ms = max(0, pause.until_ns - now_ns) // 1_000_000
        lines.append(f"pause{n}:node={pause.label or 'all'},left_ms={left_ms},by={pause.who}")
    lines += ["", "# Nodes"]
    for n, node in enumerate(ctx.nodes()):
        facts = f"address={node.address},id={node.id},role={node.role},up={node.up:d},pending={node.pending}"
        lines.append(f"node{n}:{facts},paused={node.paused:d}")
    return encode.verbatim("".join(line + "\r\n" for line in lines).encode(), "txt", client.proto)


def _node(ctx: ServeContext, word: bytes) -> tuple[str, str] | None:
    """(subject, label) of the node that is called so; None = there is none."""
    name = word.decode("utf-8", "replace")
    for node in ctx.nodes():
        if name and name in (node.address, node.id):
            return node.id or node.address, node.address
    for pause in ctx.node_pauses.present if ctx.node_pauses is not None else ():  # it may have left the topology
        if pause.subject and name in (pause.subject, pause.label):
            return pause.subject, pause.label
    return None


# -- PAUSE ---------------------------------------------------------------------------------------------------------


def _pause_nodes(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """PROXY PAUSE [NODE n] [timeout]."""
    words, subject, label = args[2:], "", ""
    if words and words[0].upper() == b"NODE":
        if len(words) < 2:
            return errors.SYNTAX
        if (found := _node(ctx, words[1])) is None:
            return errors.unknown_node(words[1])
        subject, label = found
        words = words[2:]
    if len(words) > 1:
        return errors.SYNTAX
    timeout_ms = integer(words[0]) if words else DEFAULT_MS
    if timeout_ms is None or not 1 <= timeout_ms <= LONGEST_MS:
        return TIMEOUT
    if client.pending:
        return None
    now_ns = time.monotonic_ns()
    order = NodePause(subject, label, now_ns + timeout_ms * 1_000_000, client.address, now_ns)
    inquiry = Inquiry(
        "proxy|pause", msgspec.msgpack.encode(order), _sum, everyone=True, subject=order.subject, lasting=True
    )
    return ctx.inquire(inquiry, partial(_paused, ctx, order))


def _paused(ctx: ServeContext, order: NodePause, told: tuple[int, int]) -> bytes:
    left, missing = told
    if missing < 0:
        return NO_MAIN_PROCESS
    if ctx.node_pauses is not None and (fate := ctx.node_pauses.fate(order)):
        return errors.line(f"ERR the pause of {f'node {order.label}' if order.label else 'all nodes'} {fate}")
    where = f"node {order.label} is" if order.label else "all nodes are"
    if missing:
        return errors.line(f"ERR {where} paused, but {missing} workers have not said that nothing is under way there")
    if left:
        return errors.line(f"ERR {where} paused, but after {DRAINED_S:g} s {left} commands there are not answered")
    return OK


def _sum(parts: list[bytes], missing: int) -> tuple[int, int]:
    return sum(map(int, b"".join(parts).replace(b".", b"").split())), missing


def _pause_own(ctx: ServeContext, body: bytes) -> Iterator[bytes | None]:
    """Says how many commands are not answered when it gives up waiting."""
    order = _pause.decode(body)
    if ctx.node_pauses is None:
        return
    ctx.node_pauses.obey(order)
    told_s = time.monotonic()
    until_s = told_s + DRAINED_S
    while (left := ctx.node_pauses.pending(order.subject)) and (now_s := time.monotonic()) < until_s:
        if ctx.node_pauses.fate(order):
            break
        told, told_s = (b".", now_s) if now_s - told_s > ALIVE_S else (None, told_s)
        yield told
    yield b"%d\n" % left


# -- RESUME --------------------------------------------------------------------------------------------------------


def _resume(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """PROXY RESUME [NODE n]."""
    words, subject, label = args[2:], "", ""
    present = {pause.subject for pause in ctx.node_pauses.present} if ctx.node_pauses is not None else set()
    if words:
        if words[0].upper() != b"NODE" or len(words) != 2:
            return errors.SYNTAX
        if (found := _node(ctx, words[1])) is None:
            return errors.unknown_node(words[1])
        subject, label = found
        if "" in present:  # were the node paused by itself, too, that would change nothing
            return ALL_PAUSED
    if client.pending:
        return None
    order = NodePause(subject, label, 0, client.address, time.monotonic_ns())
    later = Later(barrier=True)
    # Of a kind of its own: a worker that starts later is told both, for a newer pause outlasts this.
    body = msgspec.msgpack.encode(order)
    inquiry = Inquiry("proxy|resume", body, lambda parts, missing: missing, everyone=True, subject=subject)

    def ready(missing: int) -> bytes:
        told = ctx.inquire(inquiry, resumed)
        if isinstance(told, bytes):  # it is not even asked
            later.answer(told)
        return OK

    def resumed(missing: int) -> bytes:
        later.answer(_resumed(ctx, order) if missing >= 0 else NO_MAIN_PROCESS)
        return OK

    told = ctx.inquire(Inquiry("proxy|prepare", subject.encode(), lambda parts, missing: missing), ready)
    return told if isinstance(told, bytes) else later


def _resumed(ctx: ServeContext, order: NodePause) -> bytes:
    if ctx.node_pauses is None:
        return OK
    for pause in ctx.node_pauses.present:
        if (not order.subject or pause.subject in ("", order.subject)) and not ctx.node_pauses.fate(pause):
            where = f"node {pause.label} was" if pause.label else "all nodes were"
            return errors.line(f"ERR {where} paused meanwhile by {pause.who}; what was paused before goes on")
    return OK


def _resume_own(ctx: ServeContext, body: bytes) -> Iterator[bytes | None]:
    if ctx.node_pauses is not None:
        ctx.node_pauses.obey(_pause.decode(body))
    yield b""


def _prepare_own(ctx: ServeContext, body: bytes) -> Iterator[bytes | None]:
    if ctx.node_pauses is None:
        return
    told_s = time.monotonic()
    for _ in ctx.node_pauses.prepare(body.decode()):
        now_s = time.monotonic()
        told, told_s = (b".", now_s) if now_s - told_s > ALIVE_S else (None, told_s)
        yield told


COMMANDS: Commands = {
    b"proxy|help": (2, _for_administrators(_help)),
    b"proxy|info": (2, _for_administrators(_info)),
    b"proxy|pause": (-2, _for_administrators(_pause_nodes)),
    b"proxy|resume": (-2, _for_administrators(_resume)),
}

ANSWERERS: Answerers = {"proxy|pause": _pause_own, "proxy|prepare": _prepare_own, "proxy|resume": _resume_own}
