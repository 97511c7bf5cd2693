"""How a new connection introduces itself to a node, and which refusals it serves in spite of.

Why: said at two places: in every handshake (worker.connector), and when new credentials are tried before they are put
in force (control.credentials), which must not be content where the handshake would fail.
"""

from __future__ import annotations

PING = ("PING",)  # so that the node has said something where nothing else is to be said


def words(proto: int, username: str, password: str, name: str) -> list[tuple[str, ...]]:
    """The commands, in their order: login, protocol, name; none when all of that is as it is."""
    commands: list[tuple[str, ...]] = []
    if proto == 3:
        commands.append(("HELLO", "3", *(("AUTH", username or "default", password) if password else ())))
    elif password:
        # Servers before 6.0 know no users, and AUTH of one word means the default user everywhere.
        commands.append(("AUTH", username, password) if username else ("AUTH", password))
    if name:  # not in HELLO, where a refusal of the name would be one of everything
        commands.append(("CLIENT", "SETNAME", name))
    return commands


def fatal(command: tuple[str | bytes, ...], line: str) -> bool:
    """Whether the connection is of no use after this error line (without its '-').

    A user may lack the permission to name itself, or to say PING, or CLIENT may have been renamed: the rest is served.
    """
    if command == PING:
        return not line.startswith("NOPERM ")
    return command[:2] != ("CLIENT", "SETNAME") or not line.startswith(("NOPERM ", "ERR unknown "))
