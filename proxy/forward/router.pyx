# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Which backend serves a request.

Control publishes a topology (`publish`); the data path reads slot -> shard -> node -> connection. Between two
topologies single slots are re-pointed by MOVED (`learn`), to nodes of the topology and no others. A node that changes
its role gets new connections, because a connection keeps READONLY for its life; all nodes get new ones when control
says so (`renew`: other credentials, another number of them); a node that left the topology is drained, then forgotten.
All of this runs between two batches of the data path: its time is linear in the nodes and in what is under way.

Invariant: before the next command for a slot (or for any primary) can go elsewhere than one that is under way, the
client of that one is unsettled, so that it sends nothing that could overtake.
"""
cimport cython
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

from proxy.cluster.slot cimport SLOTS
from proxy.cluster.slot_table cimport NO_SHARD
from proxy.forward.backend cimport BACKEND_BACKOFF, BACKEND_CLOSED, BACKEND_UP
from proxy.forward.node cimport Pool, Shard
from proxy.forward.ports cimport Sink
from proxy.forward.request cimport REQ_READ, TARGET_ANY, TARGET_EXTRA, TARGET_NODE, TARGET_SHARD, TARGET_SLOT

cdef enum:
    EXACT_MAX = 256     # requests under way up to which those for one slot are looked for: see unsettle_slot

cdef int64_t IDLE_NS = 60_000_000_000       # ... of a connection to a database other than 0: see trim

READ_POLICIES = ("primary", "prefer_primary", "replica", "prefer_replica", "any")


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

    def publish(self, addresses, shards, owners):
        """Replaces the whole table; what does not fit together raises ValueError and changes nothing.

        addresses: [(Address, whether it is a replica)]. shards: [(index of the primary in addresses, or -1; tuple of
        those of the replicas)]. owners: see SlotTable.load. An address that is there twice is one node, a primary if
        it is one anywhere.
        """
        cdef Node node
        cdef dict old = self.nodes, nodes = {}      # hashing an address takes longer than all else here: do it seldom
        cdef list placed = [], made = [], changed = []
        cdef SlotTable table = SlotTable()
        cdef list known = [(address, bool(replica)) for address, replica in addresses]
        cdef Py_ssize_t n = len(known)
        for primary, replicas in shards:
            if not -1 <= primary < n:
                raise ValueError(f"no node index: {primary} of {n}")
            for index in replicas:
                if not 0 <= index < n:
                    raise ValueError(f"no node index: {index} of {n}")
        table.load(owners, len(shards))
        self.published += 1
        for address, replica in known:
            node = old.get(address)
            if node is None:
                node = nodes.get(address)
                if node is None:
                    node = Node(address, replica)
            placed.append(node)
            if node.published == self.published:    # it is there twice
                node.wanted_replica = node.wanted_replica and replica
                continue
            node.published = self.published
            node.wanted_replica = replica
            node.shard = -1
            node.owner = False
            nodes[address] = node
        for node in nodes.values():
            if node.replica != node.wanted_replica:
                node.replica = node.wanted_replica
                changed.append(node)
        for primary, replicas in shards:
            made.append(Shard(None if primary < 0 else placed[primary], [placed[index] for index in replicas]))
        self.nodes = nodes
        self.shards = made
        self.slots = table
        self.known = True
        self.numbered = {node.number: node for node in nodes.values()}
        self.find_primaries()
        self.forget_direct()
        for node in old.values():
            self.unsettle(node, False)
        for node in changed:
            self.replace(node)
        for node in old.values():
            if node.published != self.published:
                self.drop(node)

    cdef void find_primaries(self):
        """The nodes that own slots, and where each primary stands in `shards`."""
        cdef Node node
        cdef int index, slot
        cdef Py_ssize_t n = len(self.shards)
        cdef bytearray owning = bytearray(n + 1)
        cdef unsigned char* owns = owning
        for slot in range(SLOTS):
            if self.slots.owner[slot] != NO_SHARD:
                owns[self.slots.owner[slot]] = 1
        cdef list before = self.primaries
        for node in before:
            node.owner = False
        self.primaries = []
        self.headless = False
        for index in range(n):
            node = (<Shard> self.shards[index]).primary
            if node is None:
                self.headless = self.headless or owns[index]
                continue
            if node.shard < 0:
                node.shard = index
            if owns[index] and not node.owner:
                self.own(node)
        for node in before:
            if not node.owner:
                node.owner_ns = 0

    cdef void own(self, Node node):
        node.owner = True
        node.owner_ns = node.owner_ns or self.reactor.now
        self.primaries.append(node)

    cdef void change_role(self, Node node, bint replica) noexcept:
        """New connections in the new role: one that sent READONLY would answer stale reads after a demotion."""
        node.replica = replica
        self.forget_direct()
        self.replace(node)

    cdef list replace(self, Node node):
        """Empties the node's pools; the connections of before, returned, drain and close. `direct` must be forgotten.

        Whether it is down is to be found out anew: requests for a node that has been down for long are refused, so
        that nobody would have the new connections made.
        """
        cdef Backend b
        cdef Pool pool
        cdef list old = []
        self.unsettle(node, True)
        for pool in node.pools():
            old += pool.backends
            pool.down_since_ns = 0
            pool.backends = []
        if old:
            for b in old:
                b.retire()
            node.retired = [b for b in node.retired + old if b.state != BACKEND_CLOSED]
        return old

    cdef void drop(self, Node node) noexcept:
        """The node left the cluster: nothing new goes there; what is pending may still be answered."""
        node.gone = True
        node.owner = False
        self.replace(node)
        if node.retired or node.leases:
            self.retired.append(node)
        self.port.node_gone(node)

    cdef void learn(self, int slot, Node node) noexcept:
        """A MOVED said that this node of the topology is the primary of slot."""
        cdef int owner = self.slots.owner[slot]
        cdef Node before = None
        if node.replica:
            self.change_role(node, False)
        if owner != NO_SHARD:
            before = (<Shard> self.shards[owner]).primary
            if before is node:
                return
        if node.shard < 0:                          # it is the primary of none yet
            if len(self.shards) >= NO_SHARD:
                return
            node.shard = <int> len(self.shards)
            self.shards.append(Shard(node, []))
            self.forget_direct()
        self.slots.set(slot, node.shard)
        if not node.owner:
            self.own(node)
        if owner != NO_SHARD:
            if before is not None:
                self.unsettle_slot(before, slot)
            for before in (<Shard> self.shards[owner]).replicas:
                self.unsettle_slot(before, slot)

    cdef void unsettle(self, Node node, bint everything) noexcept:
        """Unsettles the clients of what is under way at this node: of everything, or of what would go elsewhere now."""
        cdef Backend b
        cdef Request* r
        for b in node.backends():
            r = b.head
            while r != NULL:
                if r.sink != NULL and (everything or self.astray(node, r)):
                    (<Sink> r.sink).unsettle()
                r = r.bnext

    cdef void unsettle_slot(self, Node node, int slot) noexcept:
        """Unsettles the clients of what is under way at this node for a slot that has gone elsewhere.

        A node that lost all of its slots says so for every request it has: looking at all of them each time would take
        time by the square of their number. Where there are many, all their clients are unsettled the first time, and
        nobody is looked for again until requests have come that are newer: an unsettled client sends none.
        """
        cdef Backend b
        cdef Request* r
        cdef bint everything
        for b in node.backends():
            if b.tail == NULL or b.tail.pos < b.unsettled_to:
                continue
            everything = b.pending > EXACT_MAX
            r = b.head
            while r != NULL:
                if r.sink != NULL and (everything or r.slot == slot and self.astray(node, r)):
                    (<Sink> r.sink).unsettle()
                r = r.bnext
            if everything:
                b.unsettled_to = b.win_pos + (b.win.end - b.win.start)

    cdef bint astray(self, Node node, Request* r) noexcept:
        """Whether a request under way at this node would be sent to another one now."""
        cdef Shard shard
        cdef int index
        if r.target == TARGET_ANY or r.target == TARGET_SHARD:
            return not node.owner
        if r.target != TARGET_SLOT:
            return False
        index = self.slots.owner[r.slot]
        if index == NO_SHARD:
            return True
        shard = <Shard> self.shards[index]
        if shard.primary is node:
            return False
        return r.policy == READS_PRIMARY or not r.flags & REQ_READ or node not in shard.replicas

    def owners(self):
        """[(first slot, last slot, label of its primary)], ascending; slots without a primary are left out."""
        return [
            (first, last, (<Shard> self.shards[index]).primary.label)
            for first, last, index in self.slots.ranges() if (<Shard> self.shards[index]).primary is not None
        ]

    def renew(self):
        """Every node gets new connections, made on first use; the old ones, returned, drain and close.

        Nothing under way is lost, nor overtaken on a new connection: its client is unsettled. Leases stay.
        """
        cdef Node node
        cdef list old = []
        self.reactor.tick()
        self.forget_direct()
        for node in self.nodes.values():
            old += self.replace(node)
        return old

    def lease(self, Node node, int proto, int db=0):
        """A connection of its own for one client, connected when it is first used.

        Whoever leases it closes it; when it is lost, what is under way on it fails and it is not made again.
        """
        backend = Backend(self.reactor, node, None, proto, db, self.recovery, self.port, self.counters, self.settings,
                          self.pushes)
        node.leases.append(backend)
        return backend

    def warm(self, int proto):
        """Connects to every primary that is not connected yet."""
        cdef Node node
        cdef Backend b
        for node in self.primaries:
            for b in self.fill(node, proto, 0):
                b.demand()

    def sweep(self):
        """Deadlines, stalls and trimming of every connection; to be called some ten times a second."""
        cdef Node node
        cdef Backend b
        cdef Pool pool
        self.reactor.tick()
        for node in [*self.nodes.values(), *self.retired]:
            for b in node.backends():
                b.sweep(self.reactor.now)
            for pool in node.numbered.values():
                self.trim(pool)
            if node.retired:
                node.retired = [b for b in node.retired if (<Backend> b).state != BACKEND_CLOSED]
            if node.leases:
                node.leases = [b for b in node.leases if (<Backend> b).state != BACKEND_CLOSED]
        if self.retired:
            self.retired = [n for n in self.retired if (<Node> n).retired or (<Node> n).leases]

    cdef void trim(self, Pool pool) noexcept:
        """Closes the connections to a database other than 0 that nobody has used for a while: there may be many."""
        cdef Backend b
        for b in pool.backends:
            if b.state != BACKEND_UP or b.head != NULL or self.reactor.now - b.progress_ns < IDLE_NS:
                return
        for b in pool.backends:
            b.close()
        pool.backends = []

    def close(self):
        """Closes every connection; what is pending is handed to recovery."""
        cdef Node node
        for node in [*self.nodes.values(), *self.retired]:
            for b in node.backends():
                b.close()

    # -- the data path's side ------------------------------------------------------------------------------------

    cdef list fill(self, Node node, int proto, int db):
        """The node's connections in that protocol and database, made on first use."""
        cdef Pool pool = node.pool(proto, db)
        if not pool.backends:
            for _ in range(self.connections):
                pool.backends.append(Backend(
                    self.reactor, node, pool, proto, db, self.recovery, self.port, self.counters, self.settings,
                    self.pushes
                ))
        return pool.backends

    cdef Node primary_of(self, int slot):
        """The slot's primary; None when it has none, or nothing is known yet."""
        cdef int index = self.slots.owner[slot]
        return None if index == NO_SHARD else (<Shard> self.shards[index]).primary

    cdef int choose(self, Request* r) noexcept:
        """Finds the backend for a request (`chosen`); says why there is none otherwise.

        What goes to a primary with one connection is found without a look at shards, nodes and pools: `direct` has what
        find() found, until anything of those changes.
        """
        cdef int index, result
        cdef void* backend
        if r.target == TARGET_SLOT and (r.policy == READS_PRIMARY or not r.flags & REQ_READ) and r.db == 0:
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
        if r.target == TARGET_NODE or r.target == TARGET_SHARD or r.target == TARGET_EXTRA:
            node = <Node> self.numbered.get(r.node)
            if r.target == TARGET_SHARD and (node is None or not node.owner):
                return self.heir(r)
            if node is None:
                return LOST
            if r.target == TARGET_EXTRA and not node.owner and node.pool(r.proto, r.db).down_since_ns:
                return HOPELESS
            return self.at(node, r)
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
        if node is None or node.replica or node.pool(r.proto, r.db).down_since_ns or not node.owner:
            for i in range(n):
                node = <Node> self.primaries[(r.affinity + i) % n]
                if node.pool(r.proto, r.db).down_since_ns == 0:
                    break
            else:
                node = <Node> self.primaries[r.affinity % n]
        r.node = self.served_by = node.number
        return self.at(node, r)

    cdef int heir(self, Request* r) noexcept:
        """Who has taken over from a primary since the request was read: one that owned slots before has its own part
        of the command, and must not get two."""
        cdef Node node = self.primary_of(r.slot)
        if node is None:
            return UNCOVERED if self.slots.owner[r.slot] == NO_SHARD else WAIT
        return LOST if node.owner_ns < r.start_ns else self.at(node, r)

    cdef uint32_t home(self, int slot) noexcept:
        """Node.number of the primary that owns a slot; 0 when there is none."""
        cdef int index = self.slots.owner[slot] if slot >= 0 and self.known else NO_SHARD
        cdef Node node = None
        if index != NO_SHARD:
            node = (<Shard> self.shards[index]).primary
        return 0 if node is None else node.number

    cdef int at(self, Node node, Request* r) noexcept:
        """Chooses the request's connection to this node."""
        cdef Pool pool = node.pool(r.proto, r.db)
        cdef list backends = pool.backends
        cdef Backend b
        cdef Py_ssize_t n = len(backends)
        if n == 0:
            backends = self.fill(node, r.proto, r.db)
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
            if node is not None and node.pool(r.proto, r.db).down_since_ns == 0:
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
            pool = node.pool(r.proto, r.db)
            if pool.down_since_ns or (node.replica and not node.usable):
                continue
            pending = (<Backend> pool.backends[0]).pending if pool.backends else 0
            if best is None or pending < fewest:
                best = node
                fewest = pending
        if best is None and with_primary:
            return shard.primary            # nothing is up: whoever waits, waits for the primary
        return best
