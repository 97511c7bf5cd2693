"""CONFIG SET: what would change who can reach the servers, where, and for how long, is not for clients.

Why: the proxy has one password for the servers and its clients another. CONFIG SET requirepass, which on one Redis only
concerns those who come later, would shut the proxy itself out of every node, for all of its clients and until somebody
logs in to the servers; so would another port, or few maxclients. Nor may a client say what makes a server close its
connections (client-output-buffer-limit, timeout): the proxy's are everybody's, and what was under way there would be
lost for all. Like ACL and CLUSTER changes it is done there.
Called by serve.config_set.

Invariant: a command with one such parameter is refused whole, before any node sees it.
"""

from __future__ import annotations

from typing import Final

from proxy.resp import errors

GUARDED: Final = frozenset(
    {
        b"bind",
        b"bind-source-addr",
        b"client-output-buffer-limit",
        b"client-query-buffer-limit",
        b"masterauth",
        b"masteruser",
        b"maxclients",
        b"maxmemory-clients",
        b"port",
        b"primaryauth",
        b"primaryuser",
        b"proto-max-bulk-len",
        b"protected-mode",
        b"replica-announce-ip",
        b"replica-announce-port",
        b"replica-announced",
        b"requirepass",
        b"slave-announce-ip",
        b"slave-announce-port",
        b"timeout",
    }
)
GUARDED_PREFIXES: Final = (b"cluster-", b"rdma-", b"tls-")


def refusal(args: list[bytes]) -> bytes | None:
    """The error for CONFIG SET parameter value [parameter value ...] with one of the above; None: it may go on."""
    for word in args[2::2]:
        name = word.partition(b"\0")[0].lower()  # some servers compare names as C strings
        if name in GUARDED or name.startswith(GUARDED_PREFIXES):
            return errors.config_not_allowed(name)
    return None
