"""Options of a TCP connection. Called by worker, for clients and for connections to nodes."""

from __future__ import annotations

import socket


def keepalive(sock: socket.socket, seconds: float) -> None:
    """Asks the kernel to probe a silent TCP peer after `seconds`; 0 = never. OSError when the socket is no good."""
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1 if seconds else 0)
    if seconds and hasattr(socket, "TCP_KEEPIDLE"):  # it has another name where there is no Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(seconds)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, int(seconds / 3)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
