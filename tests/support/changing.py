"""Clusters that are changed as their administrators do it: other addresses, more and fewer nodes, redis-cli --cluster.

Why: proxy.embedded has what demo and bench need. Here is what only tests do to a cluster. Called by tests/chaos.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from redis.exceptions import RedisError

from proxy.embedded import EmbeddedCluster, EmbeddedNode, free_port, wait_for

REDIS_CLI = shutil.which("redis-cli")
CLI_S = 120.0


class ChangingCluster(EmbeddedCluster):
    """See the module."""

    # Addresses

    def move(self, node: EmbeddedNode, host: str, *, same_port: bool = False) -> None:
        """Restarts the node with its identity and its data on another loopback address.

        As in Kubernetes: it knows the others' addresses from its nodes.conf, as far as they still hold, and announces
        its own new one.
        """
        if node.alive:
            self.save(node)
            self.kill(node)
        node.host = node.options["bind-source-addr"] = host
        if "cluster-announce-hostname" not in node.options:
            node.options["cluster-announce-ip"] = host
        self.restart(node, new_port=not same_port)

    def introduce(self, node: EmbeddedNode, others: Iterable[EmbeddedNode]) -> None:
        """CLUSTER MEET with each of the others, both ways."""
        for other in others:
            node.command("CLUSTER", "MEET", other.host, other.port)
            other.command("CLUSTER", "MEET", node.host, node.port)

    def announces(self, node: EmbeddedNode, endpoint: str) -> bool:
        """Whether the node names all nodes in CLUSTER SLOTS by what cluster-preferred-endpoint-type says."""
        named = [entry[0] for row in node.command("CLUSTER", "SLOTS") for entry in row[2:]]
        match endpoint:
            case "hostname":
                return all(name and name.endswith(".test") for name in named)
            case "unknown-endpoint":
                return not any(named)
            case _:
                return all(named)

    def save(self, node: EmbeddedNode) -> None:
        """Its data will be there after the next restart."""
        node.command("SAVE")

    def begin(self, nodes: Iterable[EmbeddedNode]) -> None:
        """Starts dead nodes where they were, and does not wait for them."""
        for node in nodes:
            node.client.close()
            self._spawn(node, node.port)

    def await_nodes(self, nodes: Iterable[EmbeddedNode]) -> None:
        """... and waits until they answer."""
        for node in nodes:
            self._await_node(node, retry_ports=False)
            self._settle(node)

    # More and fewer nodes

    def add(self, replica_of: EmbeddedNode | None = None) -> EmbeddedNode:
        """redis-cli --cluster add-node of a new, empty one."""
        assert self._folder is not None
        node = EmbeddedNode(self._folder / f"node-{len(list(self._folder.iterdir()))}", 0)
        node.directory.mkdir()
        self._spawn(node, free_port(bus=True))
        self._await_node(node)
        self._settle(node)
        whose = ("--cluster-slave", "--cluster-master-id", replica_of.id) if replica_of else ()
        self.redis_cli("add-node", node.address, self.nodes[0].address, *whose)
        self.nodes.append(node)
        wait_for(lambda: self.settled(), 30, "the newcomer is known everywhere")
        return node

    def remove(self, node: EmbeddedNode) -> None:
        """redis-cli --cluster del-node; the node itself goes on, alone."""
        self.nodes.remove(node)
        self._left: list[EmbeddedNode] = [*getattr(self, "_left", []), node]
        self.redis_cli("del-node", self.nodes[0].address, node.id)

    def stop(self) -> None:
        self.nodes += [node for node in getattr(self, "_left", []) if node not in self.nodes]
        super().stop()

    def redis_cli(self, *words: str) -> str:
        """redis-cli --cluster ...; what it printed. AssertionError when it fails."""
        assert REDIS_CLI is not None, "redis-cli is not on PATH"
        done = subprocess.run(
            [REDIS_CLI, *(("-a", self._password, "--no-auth-warning") if self._password else ()), "--cluster", *words],
            capture_output=True,
            text=True,
            timeout=CLI_S,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]} {done.stderr[-500:]}"
        return done.stdout

    def settled(self) -> bool:
        """Whether all nodes agree, in redis-cli's eyes too: it does nothing before that."""
        with contextlib.suppress(AssertionError, RedisError):
            self.redis_cli("check", self.nodes[0].address)
            return self._is_whole()
        return False


class Hosts:
    """A hosts file of one daemon's own: names whose addresses a test changes. Needs root (a mount namespace).

    prefix: for ProxyDaemon.
    """

    def __init__(self, folder: Path, names: Mapping[str, Iterable[str]]) -> None:
        self._file = folder / "hosts"
        self.set(names)
        script = f'mount --bind "{self._file}" /etc/hosts && exec "$@"'
        self.prefix = ("unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh")

    def set(self, names: Mapping[str, Iterable[str]]) -> None:
        """Name -> its addresses from now on."""
        lines = [f"{address} {name}\n" for name, addresses in names.items() for address in addresses]
        # In place: what is mounted is this file, not its name.
        with open(self._file, "w") as file:
            file.write("".join(["127.0.0.1 localhost\n", *lines]))
