from proxy.forward.client import Client
from proxy.forward.datapath import ClientSettings, DataPath

def accept(
    path: DataPath, fd: int, settings: ClientSettings, address: str, local_address: str, client_id: int
) -> Client:
    """Takes a connected non-blocking descriptor and serves it.

    client_id: CLIENT ID, never given twice by one proxy. Raises OSError when epoll refuses the descriptor, which is
    then still the caller's; ValueError when the settings belong to another data path.
    """

def output_bytes(path: DataPath) -> int:
    """Reply bytes held for all clients."""

def follow_reads(path: DataPath, settings: ClientSettings, old_policy: str) -> None:
    """After settings.update(reads=...): clients of these settings that still have the old policy get the new one.

    old_policy: one of proxy.forward.router.READ_POLICIES, else ValueError.
    """

def drain(client: Client) -> None:
    """Ends it gracefully: nothing more is read, what was read is answered and sent, then it is closed.

    Whole commands that were read already are carried out, a partial one is dropped. After the last reply the client is
    told the end (shutdown), and its further input is read and discarded until it closes, or close_lingering() does: a
    close at once would answer that input with a reset, which can destroy replies the client has not read yet. A client
    that does not take its replies stays until it is closed. Counted as closed for `shutdown`, or `quit` and its like
    when that came first. Draining twice, or a client that is closed, does nothing.
    """

def close_lingering(path: DataPath, older_than_s: float = 1.0) -> None:
    """Closes clients that were told the end so many seconds ago and have not closed; to be called regularly."""

def close_idle(path: DataPath, idle_s: float) -> None:
    """Closes clients that have sent and taken nothing for idle_s seconds and have no command under way."""

def close_all(path: DataPath) -> None:
    """Closes every client at once."""

def close_slow(path: DataPath, frame_s: float, still_s: float = ...) -> None:
    """Closes clients that have begun a command frame_s seconds ago and have not sent all of it; call it regularly."""
