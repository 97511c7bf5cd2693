# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Which backend serves a request.

Control publishes a topology (`publish`); the data path reads slot -> shard -> node -> connection. Between two
topologies single slots are re-pointed by MOVED (`learn`), to nodes of the topology and no others. A node that changes
its role gets new connections, because a connection keeps READONLY for its life; all nodes get new ones when control
says so (`renew`: other credentials, another number of them); a node that left the topology is drained, then forgotten.

Invariant: before the next command for a slot (or for any primary) can go elsewhere than one that is under way, the
client of that one is unsettled, so that it sends nothing that could overtake.
"""
cimport cython
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

from proxy.cluster.slot_table cimport NO_SHARD
from proxy.forward.backend cimport BACKEND_BACKOFF, BACKEND_CLOSED, BACKEND_UP
from proxy.forward.node cimport Pool
from proxy.forward.ports cimport Sink
from proxy.forward.request cimport REQ_READ, TARGET_ANY, TARGET_NODE, TARGET_SLOT

READ_POLICIES = ("primary", "prefer_primary", "replica", "prefer_replica", "any")


@cython.final
cdef class Shard:
    """A primary (or None) and its replicas."""

    def __cinit__(self, Node primary, list replicas):
        self.primary = primary
        self.replicas = replicas


@cython.final
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
        self.numbered = {}
        self.primaries = []
        self.retired = []

    def __dealloc__(self):
        free(self.direct)

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
        self.numbered = {node.number: node for node in self.nodes.values()}
        self.forget_direct()
        self.unsettle(list(old.values()), False, -1)
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
        cdef list old = node.resp2.backends + node.resp3.backends
        self.unsettle([node], True, -1)
        self.forget_direct()
        node.resp2.backends = []
        node.resp3.backends = []
        node.resp2.down_since_ns = node.resp3.down_since_ns = 0
        for b in old:
            b.retire()
        node.retired = [b for b in node.retired + old if b.state != BACKEND_CLOSED]
        return old

    cdef void drop(self, Node node) noexcept:
        """The node left the cluster: nothing new goes there; what is pending may still be answered."""
        node.gone = True
        self.change_role(node, node.replica)
        if node.retired or node.leases:
            self.retired.append(node)
        self.port.node_gone(node)

    cdef void learn(self, int slot, Node node) noexcept:
        """A MOVED said that this node of the topology is the primary of slot."""
        cdef Shard shard
        cdef int index, owner = self.slots.owner[slot]
        cdef Node before = None
        if node.replica:
            self.change_role(node, False)
        if owner != NO_SHARD:
            before = (<Shard> self.shards[owner]).primary
            if before is node:
                return
        for index, shard in enumerate(self.shards):
            if shard.primary is node:
                break
        else:
            if len(self.shards) >= NO_SHARD:
                return
            index = len(self.shards)
            self.shards.append(Shard(node, []))
            self.forget_direct()
        self.slots.set(slot, index)
        if node not in self.primaries:              # it had no slots before
            self.primaries.append(node)
        if owner != NO_SHARD:
            self.unsettle([before, *(<Shard> self.shards[owner]).replicas], False, slot)

    cdef void unsettle(self, list nodes, bint everything, int slot) noexcept:
        """Unsettles the clients of what is under way at these nodes (None is passed over): of everything, or of what
        would go elsewhere now. slot: only of requests for it; -1 = whatever they are for."""
        cdef Node node
        cdef Backend b
        cdef Request* r
        for node in nodes:
            if node is None:
                continue
            for b in node.backends():
                r = b.head
                while r != NULL:
                    if r.sink != NULL and (slot < 0 or r.slot == slot) and (everything or self.astray(node, r)):
                        (<Sink> r.sink).unsettle()
                    r = r.bnext

    cdef bint astray(self, Node node, Request* r) noexcept:
        """Whether a request under way at this node would be sent to another one now."""
        cdef Shard shard
        cdef int index
        if r.target == TARGET_ANY:
            return node not in self.primaries
        if r.target != TARGET_SLOT:
            return False
        index = self.slots.owner[r.slot]
        if index == NO_SHARD:
            return True
        shard = <Shard> self.shards[index]
        if shard.primary is node:
            return False
        return r.policy == READS_PRIMARY or not r.flags & REQ_READ or node not in shard.replicas

    def renew(self):
        """Every node gets new connections, made on first use; the old ones, returned, drain and close.

        Nothing under way is lost, nor overtaken on a new connection: its client is unsettled. Leases stay.
        """
        cdef Node node
        cdef list old = []
        self.reactor.tick()
        for node in self.nodes.values():
            old += self.replace(node)
        return old

    def lease(self, Node node, int proto):
        """A connection of its own for one client, connected when it is first used.

        Whoever leases it closes it; when it is lost, what is under way on it fails and it is not made again.
        """
        backend = Backend(self.reactor, node, None, proto, self.recovery, self.port, self.counters, self.settings,
                          self.pushes)
        node.leases.append(backend)
        return backend

    def warm(self, int proto):
        """Connects to every primary that is not connected yet."""
        cdef Node node
        cdef Backend b
        for node in self.primaries:
            for b in self.fill(node, proto):
                b.demand()

    def sweep(self):
        """Deadlines, stalls and trimming of every connection; to be called some ten times a second."""
        cdef Node node
        cdef Backend b
        self.reactor.tick()
        for node in [*self.nodes.values(), *self.retired]:
            for b in node.backends():
                b.sweep(self.reactor.now)
            if node.retired:
                node.retired = [b for b in node.retired if (<Backend> b).state != BACKEND_CLOSED]
            if node.leases:
                node.leases = [b for b in node.leases if (<Backend> b).state != BACKEND_CLOSED]
        if self.retired:
            self.retired = [n for n in self.retired if (<Node> n).retired or (<Node> n).leases]

    def close(self):
        """Closes every connection; what is pending is handed to recovery."""
        cdef Node node
        for node in [*self.nodes.values(), *self.retired]:
            for b in node.backends():
                b.close()

    # -- the data path's side ------------------------------------------------------------------------------------

    cdef list fill(self, Node node, int proto):
        """The node's connections in that protocol, made on first use."""
        cdef Pool pool = node.pool(proto)
        if not pool.backends:
            for _ in range(self.connections):
                pool.backends.append(Backend(
                    self.reactor, node, pool, proto, self.recovery, self.port, self.counters, self.settings, self.pushes
                ))
        return pool.backends

    cdef int choose(self, Request* r) noexcept:
        """Finds the backend for a request (`chosen`); says why there is none otherwise.

        What goes to a primary with one connection is found without a look at shards, nodes and pools: `direct` has what
        find() found, until anything of those changes.
        """
        cdef int index, result
        cdef void* backend
        if r.target == TARGET_SLOT and (r.policy == READS_PRIMARY or not r.flags & REQ_READ):
            index = self.slots.owner[r.slot]
            if index < self.ndirect:
                backend = self.direct[2 * index + (r.proto == 3)]
                if backend != NULL and (<Backend> backend).state == BACKEND_UP:
                    self.chosen = backend
                    return CHOSEN
                result = self.find(r)
                if result == CHOSEN and self.connections == 1:
                    self.direct[2 * index + (r.proto == 3)] = self.chosen
                return result
        return self.find(r)

    cdef void forget_direct(self) noexcept:
        """Shards, nodes or pools change."""
        cdef int i, n = <int> len(self.shards)
        if n != self.ndirect:
            free(self.direct)
            self.direct = <void**> malloc((2 * n + 1) * sizeof(void*))
            self.ndirect = n if self.direct != NULL else 0
        for i in range(2 * self.ndirect):
            self.direct[i] = NULL

    cdef int find(self, Request* r) noexcept:
        """choose, the whole way."""
        cdef int index
        cdef Node node
        cdef Backend lease
        if not self.known:
            return UNKNOWN
        if r.target == TARGET_SLOT:
            index = self.slots.owner[r.slot]
            if index == NO_SHARD:
                return UNCOVERED
            node = self.pick(<Shard> self.shards[index], r)
            return WAIT if node is None else self.at(node, r)
        if r.target == TARGET_ANY:
            return self.anywhere(r)
        if r.target == TARGET_NODE:
            node = <Node> self.numbered.get(r.node)
            return LOST if node is None else self.at(node, r)
        lease = <Backend> r.lease
        if lease.state == BACKEND_CLOSED:
            return LOST
        lease.demand()
        self.chosen = r.lease
        return CHOSEN

    cdef int anywhere(self, Request* r) noexcept:
        """Any primary: the one its client was served by before as long as that will do, so that what one client
        publishes stays in order while the list of primaries changes."""
        cdef Node node = <Node> self.numbered.get(r.node) if r.node else None
        cdef Py_ssize_t n = len(self.primaries), i
        if n == 0:
            return UNCOVERED
        if node is None or node.replica or node.pool(r.proto).down_since_ns or node not in self.primaries:
            for i in range(n):
                node = <Node> self.primaries[(r.affinity + i) % n]
                if node.pool(r.proto).down_since_ns == 0:
                    break
            else:
                node = <Node> self.primaries[r.affinity % n]
        r.node = self.served_by = node.number
        return self.at(node, r)

    cdef int at(self, Node node, Request* r) noexcept:
        """Chooses the request's connection to this node."""
        cdef Pool pool = node.resp3 if r.proto == 3 else node.resp2
        cdef list backends = pool.backends
        cdef Backend b
        cdef Py_ssize_t n = len(backends)
        if n == 0:
            backends = self.fill(node, r.proto)
            n = len(backends)
        b = <Backend> backends[0 if n == 1 else <Py_ssize_t> (r.affinity % n)]
        if b.state == BACKEND_UP:
            self.chosen = <void*> b
            return CHOSEN
        if pool.down_since_ns and self.reactor.now - pool.down_since_ns > self.failover_ns:
            return HOPELESS
        if b.state == BACKEND_BACKOFF or b.state == BACKEND_CLOSED:
            return WAIT
        b.demand()
        self.chosen = <void*> b
        return CHOSEN

    cdef Node pick(self, Shard shard, Request* r):
        """The node of the shard that the read policy asks for; None when there is none fit."""
        cdef Node node = shard.primary
        if r.policy == READS_PRIMARY or not r.flags & REQ_READ:
            return node
        if r.policy == READS_PREFER_PRIMARY:
            if node is not None and node.pool(r.proto).down_since_ns == 0:
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
        cdef Pool pool
        n = replicas + (1 if with_primary and shard.primary is not None else 0)
        for i in range(n):
            place = <Py_ssize_t> (r.affinity + i) % n
            node = <Node> shard.replicas[place] if place < replicas else shard.primary
            pool = node.pool(r.proto)
            if pool.down_since_ns or (node.replica and not node.usable):
                continue
            pending = (<Backend> pool.backends[0]).pending if pool.backends else 0
            if best is None or pending < fewest:
                best = node
                fewest = pending
        if best is None and with_primary:
            return shard.primary            # nothing is up: whoever waits, waits for the primary
        return best
