# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Which backend serves a request.

Control publishes a topology (`publish`); the data path reads slot -> shard -> node -> connection. Between two
topologies single slots are re-pointed by MOVED (`learn`). A node that changes its role gets new connections, because a
connection keeps READONLY for its life; all nodes get new ones when control says so (`renew`: other credentials, another
number of them); a node that left the topology is drained, then forgotten.
"""
from libc.stdint cimport int64_t

from proxy.cluster.slot_table cimport NO_SHARD
from proxy.forward.backend cimport BACKEND_BACKOFF, BACKEND_CLOSED, BACKEND_UP
from proxy.forward.ports cimport Origin
from proxy.forward.request cimport REQ_PART, REQ_READ

READ_POLICIES = ("primary", "prefer_primary", "replica", "prefer_replica", "any")


cdef class Shard:
    """A primary (or None) and its replicas."""

    def __cinit__(self, Node primary, list replicas):
        self.primary = primary
        self.replicas = replicas


cdef class Router:
    """One per worker. connections: per node and protocol; failover_ns: how long a node known to be down is waited for.

    `port` is control's side: connect(backend), backend_lost(backend, reason), node_gone(node).
    """

    def __cinit__(self, Reactor reactor, Counters counters, BackendSettings settings, *, int connections,
                  int64_t failover_ns):
        self.reactor = reactor
        self.counters = counters
        self.settings = settings
        self.connections = connections
        self.failover_ns = failover_ns
        self.slots = SlotTable()
        self.shards = []
        self.nodes = {}
        self.primaries = []
        self.retired = []

    # -- control's side ------------------------------------------------------------------------------------------

    def publish(self, shards):
        """Replaces the whole table.

        shards: [(primary address or None, [replica addresses], [(first slot, last slot)])].
        """
        cdef Node node
        cdef int slot, index
        old = self.nodes
        self.nodes = {}
        self.shards = []
        self.primaries = []
        table = SlotTable()
        for primary, replicas, ranges in shards:
            index = len(self.shards)
            shard = Shard(
                None if primary is None else self.adopt(old, primary, False),
                [self.adopt(old, address, True) for address in replicas],
            )
            self.shards.append(shard)
            if shard.primary is not None and ranges:
                self.primaries.append(shard.primary)
            for first, last in ranges:
                for slot in range(first, last + 1):
                    table.set(slot, index)
        self.slots = table
        self.known = True
        for address, node in old.items():
            if address not in self.nodes:
                self.drop(node)

    cdef Node adopt(self, dict old, address, bint replica):
        """The node of that address, old or new, in that role."""
        cdef Node node = self.nodes.get(address)
        if node is None:
            node = old.get(address)
        if node is None:
            node = Node(address, replica)
        elif node.replica != replica:
            self.change_role(node, replica)
        self.nodes[address] = node
        return node

    cdef void change_role(self, Node node, bint replica) noexcept:
        """New connections in the new role: one that sent READONLY would answer stale reads after a demotion."""
        node.replica = replica
        self.replace(node)

    cdef list replace(self, Node node):
        """Empties the node's pools; the connections of before, returned, drain and close.

        Whether it is down is to be found out anew: requests for a node that has been down for long are refused, so
        that nobody would have the new connections made.
        """
        cdef Backend b
        cdef list old = node.resp2 + node.resp3
        node.resp2 = []
        node.resp3 = []
        node.down_since_ns = 0
        for b in old:
            b.retire()
        node.retired = [b for b in node.retired + old if b.state != BACKEND_CLOSED]
        return old

    cdef void drop(self, Node node) noexcept:
        """The node left the cluster: nothing new goes there; what is pending may still be answered."""
        node.gone = True
        self.change_role(node, node.replica)
        if node.retired:
            self.retired.append(node)
        self.port.node_gone(node)

    cdef Node node_for(self, address, bint replica):
        cdef Node node = self.nodes.get(address)
        if node is None:
            node = Node(address, replica)
            self.nodes[address] = node
        return node

    cdef Node learn(self, int slot, address):
        """A MOVED said that address is the primary of slot; the node may have been unknown before."""
        cdef Node node = self.node_for(address, False)
        cdef Shard shard
        cdef int index
        if node.replica:
            self.change_role(node, False)
        for index, shard in enumerate(self.shards):
            if shard.primary is node:
                self.slots.set(slot, index)
                if node not in self.primaries:      # it had no slots before
                    self.primaries.append(node)
                return node
        if len(self.shards) < NO_SHARD:
            self.shards.append(Shard(node, []))
            self.slots.set(slot, len(self.shards) - 1)
            self.primaries.append(node)
        return node

    def renew(self):
        """Every node gets new connections, made on first use; the old ones, returned, drain and close.

        Nothing under way is lost, nor overtaken on a new connection: its client is unsettled.
        """
        cdef Node node
        cdef Backend b
        cdef Request* r
        cdef void* client
        cdef list old = []
        self.reactor.tick()
        for node in self.nodes.values():
            for b in node.backends():
                r = b.head
                while r != NULL:
                    client = r.parent.client if r.flags & REQ_PART else r.client
                    if client != NULL:
                        (<Origin> client).unsettled = True
                    r = r.bnext
            old += self.replace(node)
        return old

    def warm(self, int proto):
        """Connects to every primary that is not connected yet."""
        cdef Node node
        cdef Backend b
        for node in self.primaries:
            for b in self.pool(node, proto):
                b.demand()

    def sweep(self):
        """Deadlines, stalls and trimming of every connection; to be called some ten times a second."""
        cdef Node node
        cdef Backend b
        self.reactor.tick()
        for node in [*self.nodes.values(), *self.retired]:
            for b in node.resp2:
                b.sweep(self.reactor.now)
            for b in node.resp3:
                b.sweep(self.reactor.now)
            if node.retired:
                for b in node.retired:
                    b.sweep(self.reactor.now)
                node.retired = [b for b in node.retired if b.state != BACKEND_CLOSED]
        if self.retired:
            self.retired = [n for n in self.retired if (<Node> n).retired]

    def close(self):
        """Closes every connection; what is pending is handed to recovery."""
        cdef Node node
        for node in [*self.nodes.values(), *self.retired]:
            for b in node.backends():
                b.close()

    # -- the data path's side ------------------------------------------------------------------------------------

    cdef list pool(self, Node node, int proto):
        """The node's connections in that protocol, made on first use."""
        cdef list pool = node.resp3 if proto == 3 else node.resp2
        if not pool:
            for _ in range(self.connections):
                pool.append(Backend(
                    self.reactor, node, proto, self.recovery, self.port, self.counters, self.settings
                ))
        return pool

    cdef int choose(self, Request* r) noexcept:
        """Finds the backend for a request (`chosen`); says why there is none otherwise."""
        cdef int index
        cdef Node node
        cdef Py_ssize_t n, i
        if not self.known:
            return UNKNOWN
        if r.slot < 0:
            n = len(self.primaries)
            for i in range(n):
                node = <Node> self.primaries[(r.affinity + i) % n]
                if node.down_since_ns == 0:
                    return self.at(node, r)
            return UNCOVERED if n == 0 else self.at(<Node> self.primaries[r.affinity % n], r)
        index = self.slots.owner[r.slot]
        if index == NO_SHARD:
            return UNCOVERED
        node = self.pick(<Shard> self.shards[index], r)
        if node is None:
            return WAIT
        return self.at(node, r)

    cdef int at(self, Node node, Request* r) noexcept:
        """Chooses the request's connection to this node."""
        cdef list pool = node.resp3 if r.proto == 3 else node.resp2
        cdef Backend b
        cdef Py_ssize_t n = len(pool)
        if n == 0:
            pool = self.pool(node, r.proto)
            n = len(pool)
        b = <Backend> pool[0 if n == 1 else <Py_ssize_t> (r.affinity % n)]
        if b.state == BACKEND_UP:
            self.chosen = b
            return CHOSEN
        if node.down_since_ns and self.reactor.now - node.down_since_ns > self.failover_ns:
            return HOPELESS
        if b.state == BACKEND_BACKOFF or b.state == BACKEND_CLOSED:
            return WAIT
        b.demand()
        self.chosen = b
        return CHOSEN

    cdef Node pick(self, Shard shard, Request* r):
        """The node of the shard that the read policy asks for; None when there is none fit."""
        cdef Node node = shard.primary
        if r.policy == READS_PRIMARY or not r.flags & REQ_READ:
            return node
        if r.policy == READS_PREFER_PRIMARY:
            if node is not None and node.down_since_ns == 0:
                return node
            node = self.least(shard, r, False)
            return shard.primary if node is None else node
        if r.policy == READS_ANY:
            return self.least(shard, r, True)
        node = self.least(shard, r, False)
        if node is None and r.policy == READS_PREFER_REPLICA:
            return shard.primary
        return node

    cdef Node least(self, Shard shard, Request* r, bint with_primary):
        """The fit node with the fewest pending requests; ties go round by the client's affinity."""
        cdef Node node, best = None
        cdef size_t pending, fewest = 0
        cdef Py_ssize_t replicas = len(shard.replicas), n, i, place
        cdef list pool
        n = replicas + (1 if with_primary and shard.primary is not None else 0)
        for i in range(n):
            place = <Py_ssize_t> (r.affinity + i) % n
            node = <Node> shard.replicas[place] if place < replicas else shard.primary
            if node.down_since_ns or (node.replica and not node.usable):
                continue
            pool = node.resp3 if r.proto == 3 else node.resp2
            pending = (<Backend> pool[0]).pending if pool else 0
            if best is None or pending < fewest:
                best = node
                fewest = pending
        if best is None and with_primary:
            return shard.primary            # nothing is up: whoever waits, waits for the primary
        return best
