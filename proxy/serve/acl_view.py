"""ACL WHOAMI and the subcommands that only read: the users are the proxy's, and it has one, `default`.

Why: the servers' users and their passwords' hashes are the cluster's, not its clients'; ACL LOG would tell of other
proxies' connections. Called through serve.table. (ACL CAT, GENPASS and HELP are forwarded: the same everywhere.)

Invariants: no password and no hash of one is shown, the client password's included: a `default` with a password has
neither `nopass` nor a `#...`. What the configuration refuses shows in DRYRUN, not in the rules (+@all).
"""

from __future__ import annotations

from proxy.resp import encode, errors
from proxy.serve.context import ClientLike, Commands, ServeContext
from proxy.serve.words import DEFAULT_USER, OK, integer, version


def _whoami(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    return encode.bulk(client.user)


def _users(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    return encode.array([encode.bulk(DEFAULT_USER)])


def _list(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    rule = " ".join(("user", DEFAULT_USER, *_flags(ctx), "~*", "&*", "+@all"))
    return encode.array([encode.bulk(rule)])


def _flags(ctx: ServeContext) -> tuple[str, ...]:
    return ("on", "nopass") if ctx.client_password is None else ("on",)


def _getuser(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    if args[2] != DEFAULT_USER.encode():
        return encode.null(client.proto)
    facts = [
        (b"flags", encode.set_([encode.bulk(flag) for flag in _flags(ctx)], client.proto)),
        (b"passwords", encode.array([])),
        (b"commands", encode.bulk(b"+@all")),
        (b"keys", encode.bulk(b"~*")),
        (b"channels", encode.bulk(b"&*")),
        (b"selectors", encode.array([])),
    ]
    if version(ctx.valkey_version) >= (9, 1):
        facts.insert(-1, (b"databases", encode.bulk(b"alldbs")))
    return encode.map_([(encode.bulk(name), value) for name, value in facts], client.proto)


def _log(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """ACL LOG [count | RESET]: always empty."""
    if len(args) > 3:
        return errors.subcommand_syntax(args[0], args[1])
    if len(args) == 3:
        if args[2].lower() == b"reset":
            return OK
        if integer(args[2]) is None:
            return errors.NOT_AN_INTEGER
    return encode.array([])


def _dryrun(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """ACL DRYRUN user command [argument ...]: allowed is what the proxy lets through."""
    if args[2] != DEFAULT_USER.encode():
        return errors.not_found("User", args[2])
    name = args[3].lower()
    row = ctx.rows.get(name) if b"|" not in name else None
    if row is not None and row.subcommands and len(args) > 4:
        row = ctx.rows.get(name + b"|" + args[4].lower())
    if row is None:
        return errors.not_found("Command", args[3])
    words = len(args) - 3
    if words != row.arity if row.arity > 0 else words < -row.arity:
        return errors.wrong_arity(row.name)
    if row.name.encode() in ctx.refused:
        who = f"User {DEFAULT_USER}" if version(ctx.server_version) >= (7, 2) else "This user"
        return encode.bulk(f"{who} has no permissions to run the '{row.name}' command")
    return OK


COMMANDS: Commands = {
    b"acl|dryrun": (-4, _dryrun),
    b"acl|getuser": (3, _getuser),
    b"acl|list": (2, _list),
    b"acl|log": (-2, _log),
    b"acl|users": (2, _users),
    b"acl|whoami": (2, _whoami),
}
