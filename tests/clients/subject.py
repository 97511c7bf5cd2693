"""What the programs are pointed at: the proxy in front of a real cluster, one plain server, or a given address.

Why: a program that fails through the proxy means something only when it works on a plain server: both can be had. And
programs in any language must be able to restart what they talk to.
Called by: run.py; and by the programs, as the command of $RESTART and $FAILOVER (`python subject.py PORT ACTION`).
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

CONTROL_S = 90.0


@dataclass
class Subject:
    """kind: proxy, plain or given. actions: name -> what does it; a name missing from it cannot be done."""

    kind: str
    host: str
    port: int
    about: str
    actions: dict[str, Callable[[], Any]] = field(default_factory=dict)
    flush: Callable[[], Any] = lambda: None
    log: Callable[[], str] = lambda: ""


def given(address: str, flush: bool) -> Subject:
    """Somebody's own: it is only emptied where flush allows it, and not restarted."""
    host, _, port = address.rpartition(":")
    subject = Subject("given", host or "127.0.0.1", int(port), address)
    if flush:
        subject.flush = lambda: flush_through(subject)
    return subject


@contextlib.contextmanager
def plain(server: str) -> Iterator[Subject]:
    """One server without cluster mode. A restart empties it; there is nobody to fail over to."""
    from proxy.embedded import die_with_parent, wait_for
    from tests.support.cluster import Standalone

    class Restartable(Standalone):
        def restart(self) -> None:
            assert self._process is not None
            self._process.kill()
            self._process.wait()
            self._process = subprocess.Popen(
                [server, *self._settings()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=die_with_parent(),
            )
            wait_for(self._answers_or_died, 10, "the server answers again")

    with Restartable(server) as started:
        subject = Subject("plain", "127.0.0.1", started.port, f"one {server}", {"restart": started.restart})
        subject.flush = lambda: flush_through(subject)
        yield subject


@contextlib.contextmanager
def proxied(server: str, workers: int) -> Iterator[Subject]:
    """The proxy with its defaults in front of 3 primaries and 3 replicas."""
    from proxy.embedded import EmbeddedCluster
    from tests.support.proxyd import ProxyDaemon

    with (
        EmbeddedCluster(server, node_timeout_ms=5000) as cluster,
        ProxyDaemon(cluster.seeds, workers=workers) as daemon,
    ):
        daemon.keep_ports()

        def restart() -> None:
            daemon.terminate()
            daemon.start()

        def failover() -> None:
            cluster.failover(cluster.replicas()[0])

        def flush() -> None:
            for node in cluster.primaries():
                node.command("FLUSHALL")

        about = f"{workers} workers in front of 3 primaries and 3 replicas"
        actions: dict[str, Callable[[], Any]] = {"restart": restart, "failover": failover}
        yield Subject("proxy", "127.0.0.1", daemon.port, about, actions, flush, lambda: daemon.log)


def flush_through(subject: Subject) -> None:
    """FLUSHALL by the subject's own port."""
    with socket.create_connection((subject.host, subject.port), 10) as sock:
        sock.sendall(b"FLUSHALL\r\n")
        sock.recv(100)


class Control:
    """Answers `ACTION\\n` on a loopback port with `done\\n`, or what went wrong, when the action is over.

    One thread for all of them, which stays until this process ends: servers die with the thread that started them.
    """

    def __init__(self, subject: Subject) -> None:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                action = self.rfile.readline().decode().strip()
                try:
                    subject.actions[action]()
                except BaseException as error:
                    self.wfile.write(f"{type(error).__name__}: {error}\n".replace("\n", " ").encode() + b"\n")
                else:
                    self.wfile.write(b"done\n")

        self._server = socketserver.TCPServer(("127.0.0.1", 0), Handler)
        self.subject = subject
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def command(self, action: str) -> str:
        """The shell command by which a program has the action done; empty when it cannot be."""
        if action not in self.subject.actions:
            return ""
        return f"'{sys.executable}' '{__file__}' {self._server.server_address[1]} {action}"


def main() -> int:
    port, action = int(sys.argv[1]), sys.argv[2]
    with socket.create_connection(("127.0.0.1", port), CONTROL_S) as sock, sock.makefile("rw") as stream:
        stream.write(f"{action}\n")
        stream.flush()
        answer = stream.readline().strip()
    print(answer, file=sys.stderr)
    return 0 if answer == "done" else 1


if __name__ == "__main__":
    sys.exit(main())
