"""ROLE and LASTSAVE, as a standalone primary that the cluster's primaries are together.

Why: health checks and failover-aware libraries ask ROLE, backup jobs LASTSAVE. Called through serve.table.

ROLE comes from what INFO asks the nodes (serve.node_infos), bounded in time: it must not fail because a node is down,
and its offset is then that of the others. LASTSAVE is the latest of the primaries' and fails with the node that fails.
"""

from __future__ import annotations

from functools import partial

from proxy.forward.ask import Ask, Later
from proxy.resp import encode, errors
from proxy.serve import info_merge
from proxy.serve.context import Answer, ClientLike, Commands, ServeContext
from proxy.serve.node_infos import Infos


def _role(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """[master, offset, no replicas]: the offset is INFO's master_repl_offset."""
    if ctx.infos is None:
        return _master(0)
    if client.pending:
        return None
    later = Later()
    ctx.infos.wait(False, client.proto, partial(_told, later))
    return later


def _told(later: Later, infos: Infos) -> None:
    offset = info_merge.merged(infos.primaries, "replication").get("master_repl_offset", "0")
    later.answer(_master(int(offset) if offset.isdigit() else 0))


def _master(offset: int) -> bytes:
    return encode.array([encode.bulk(b"master"), encode.integer(offset), encode.array([])])


def _lastsave(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Ask:
    return Ask([("primaries", encode.encode_command("LASTSAVE"), 0)], finish=_latest, read=True)


def _latest(replies: list[bytes]) -> bytes:
    times = [int(reply[1:]) for reply in replies if reply.startswith(b":")]
    return encode.integer(max(times)) if len(times) == len(replies) else errors.INTERNAL


COMMANDS: Commands = {b"role": (1, _role), b"lastsave": (1, _lastsave)}
