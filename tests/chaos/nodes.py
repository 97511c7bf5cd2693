"""A cluster whose nodes are reached by faulty links only, and that keeps on disk what each node has carried out.

Why: the proxy and the other nodes must pass a link (tests.chaos.link) to get to a node, so each node announces its
links' ports, and connects from a loopback address of its own by which links know it. Its append-only file is its own
testimony of what it did: tests.chaos.evidence reads it. `appendfsync no` writes it before each reply, without waiting
for the disk, so that kill -9 loses none of it.

Called by: tests.chaos.scene.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from proxy.embedded import EmbeddedCluster, EmbeddedNode, wait_for
from tests.chaos.links import HOST, SOURCE_PREFIX, Links

NODE_TIMEOUT_MS = 2000
OPTIONS = {
    "appendonly": "yes",
    "appendfsync": "no",
    "aof-use-rdb-preamble": "no",
    "auto-aof-rewrite-percentage": "0",
    "cluster-require-full-coverage": "no",
    "cluster-announce-ip": HOST,
    "repl-timeout": "10",
}
ARCHIVE_POLL_S = 0.1


class LinkedCluster(EmbeddedCluster):
    """3 primaries and 3 replicas behind links. A node is named by its place from 1 on: the link's word for it."""

    def __init__(self, links: Links, server: str | None = None, *, node_timeout_ms: int = NODE_TIMEOUT_MS) -> None:
        super().__init__(server, node_timeout_ms=node_timeout_ms, options=OPTIONS)
        self.links = links

    def name(self, node: EmbeddedNode) -> str:
        return str(self.nodes.index(node) + 1)

    @property
    def link_seeds(self) -> list[str]:
        """Where the proxy finds the cluster: only links."""
        return [f"{HOST}:{self.links.port(self.name(node))}" for node in self.nodes]

    def kill(self, node: EmbeddedNode) -> None:
        """SIGKILL; its ports refuse from then on."""
        super().kill(node)
        self.links.gone(self.name(node))

    def start_again(self, node: EmbeddedNode) -> None:
        """Starts a node that was killed; returns when it answers (with LOADING, perhaps)."""
        node.client.close()
        self._spawn(node, node.port)
        self._await_node(node, retry_ports=False)

    def shut_down(self, node: EmbeddedNode) -> None:
        """SIGTERM, as in a rolling restart."""
        assert node.process is not None
        node.process.terminate()
        node.process.wait(20)
        self.links.gone(self.name(node))

    def _spawn(self, node: EmbeddedNode, port: int) -> None:
        name = self.name(node)
        own = {
            "bind-source-addr": f"{SOURCE_PREFIX}{name}",
            "cluster-announce-port": str(self.links.open(name, "client", port)),
            "cluster-announce-bus-port": str(self.links.open(name, "bus", port + 10000)),
        }
        self._options = {**OPTIONS, **own}
        super()._spawn(node, port)

    def await_links(self) -> None:
        """Until every node knows the others by their links' ports."""

        def known() -> bool:
            wanted = {
                f"{HOST}:{self.links.port(self.name(node))}@{self.links.port(self.name(node), 'bus')}"
                for node in self.nodes
            }
            return all({fields[1].split(",")[0] for fields in self._nodes_table(node)} == wanted for node in self.nodes)

        wait_for(known, 20.0, "nodes know each other by their links")


class Archive:
    """Keeps every append-only file that a node ever had, by hard links, as a context manager.

    A replica that begins anew deletes its files, and with them what it alone had carried out before it fell.
    """

    def __init__(self, cluster: LinkedCluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="archive", daemon=True)

    def __enter__(self) -> Archive:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def files(self) -> dict[str, list[Path]]:
        """Name of a node -> its files, those that are gone included."""
        self._take()
        found = {self._cluster.name(node): [] for node in self._cluster.nodes}  # type: dict[str, list[Path]]
        for path in sorted(self._folder.iterdir()):
            found[path.name.partition("-")[0]].append(path)
        return found

    def _watch(self) -> None:
        while not self._stop.wait(ARCHIVE_POLL_S):
            self._take()

    def _take(self) -> None:
        for node in self._cluster.nodes:
            for path in (node.directory / "appendonlydir").glob("*.aof"):
                with contextlib.suppress(OSError):
                    # The inode in the name: a node that begins anew gives the same names to other files.
                    kept = self._folder / f"{self._cluster.name(node)}-{path.stat().st_ino}-{path.name}"
                    if not kept.exists():
                        os.link(path, kept)
