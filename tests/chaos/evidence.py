"""Which node carried out what, by the nodes' own append-only files: what the cluster lost, and what the proxy did.

A Redis Cluster replicates asynchronously: what a primary has answered and not yet replicated is lost when it falls and
a replica takes over. No proxy can help that, and no proxy may hide behind it. So each node writes down what it carries
out before it answers (tests.chaos.nodes), the files are kept even when the node throws them away, and each operation
has a token of its own. A token that was acknowledged and is missing at the end

* stands in the file of a node that fell (was killed, stopped or cut off), and in no other node's: that node did carry
  it out and answered for it, and it was never replicated. The cluster lost it.
* stands in no file: nobody carried it out, and the answer was an invention. The proxy lost it.
* stands elsewhere: it was there and went away while nobody had fallen. Nothing allows that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.chaos.history import Fall

TOKEN = re.compile(rb"<[^<>\r\n]{1,200}>")


class Evidence:
    """files: name of a node -> its append-only files. falls: primaries that fell, in the order in which they did."""

    def __init__(self, files: Mapping[str, Sequence[Path]], falls: Iterable[Fall] = ()) -> None:
        self.falls = list(falls)
        self._files = files
        self._tokens: dict[str, set[str]] | None = None
        self._counts: dict[str, int] = {}

    def nodes_with(self, token: str) -> set[str]:
        """Names of the nodes that carried the operation out, or got it from their primary."""
        if self._tokens is None:
            self._tokens = {}
            for node, paths in self._files.items():
                for path in paths:
                    for found in TOKEN.findall(_bytes(path)):
                        self._tokens.setdefault(found.decode(), set()).add(node)
        return self._tokens.get(token, set())

    def lost_by_cluster(self, token: str) -> Fall | None:
        """The fall with which the cluster lost this operation; None when it did not."""
        nodes = self.nodes_with(token)
        if len(nodes) != 1:
            return None
        falls = [fall for fall in self.falls if fall.node in nodes]
        return falls[-1] if falls else None

    def increments(self, key: str) -> int:
        """The highest value to which a node that fell has ever incremented the key."""
        if key not in self._counts:
            fallen = {fall.node for fall in self.falls}
            self._counts[key] = max((self._highest(key, self._files[node]) for node in fallen), default=0)
        return self._counts[key]

    @staticmethod
    def _highest(key: str, paths: Sequence[Path]) -> int:
        """Each time a node begins anew it writes what it was given (base), and then what it carries out (incr)."""
        name = b"$%d\r\n%b\r\n" % (len(key.encode()), key.encode())
        begun = re.compile(rb"\$3\r\nSET\r\n" + re.escape(name) + rb"\$\d+\r\n(\d+)\r\n")
        values: dict[str, int] = {}
        for path in paths:
            generation = path.name.rpartition(".aof.")[2].partition(".")[0]
            content = _bytes(path)
            value = content.count(b"$4\r\nINCR\r\n" + name) + max(map(int, begun.findall(content)), default=0)
            values[generation] = values.get(generation, 0) + value
        return max(values.values(), default=0)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
