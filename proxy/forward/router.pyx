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
from proxy.forward.backend cimport BACKEND_CLOSED, BACKEND_UP, Backend
from proxy.forward.counters cimport Counters
from proxy.forward.node cimport Pool, Shard
from proxy.forward.pipeline cimport BackendSettings
from proxy.forward.ports cimport Owner, Sink
from proxy.forward.reactor cimport Reactor
from proxy.forward.request cimport (
    OWN_FIRST, REQ_CACHING, REQ_READ, TARGET_ANY, TARGET_EXTRA, TARGET_NODE, TARGET_SHARD, TARGET_SLOT,
)
from proxy.forward.silence cimport doubt, judge, watch

cdef enum:
    EXACT_MAX = 256     # requests under way up to which those for one slot are looked for: see unsettle_slot

cdef int64_t ASKED_NS = 1_000_000_000       # how long what `asked` says of a slot holds

READ_POLICIES = ("primary", "prefer_primary", "replica", "prefer_replica", "any")


@cython.final
cdef class Router(Connections):
    """One per worker. connections: per node and protocol; failover_ns: how long a node known to be down is waited for.

    `port` is control's side: connect(backend), backend_lost(backend, reason), node_gone(node), suspected(node).
    """

    def __cinit__(self, Reactor reactor, Counters counters, BackendSettings settings, *, int connections,
                  int64_t failover_ns):
        self.slots = SlotTable()
        self.shards = []
        self.numbered = {}
        self.primaries = []
        self.asked_ns = {}

    def __dealloc__(self):
        free(self.direct)

    # -- control's side ------------------------------------------------------------------------------------------

    def publish(self, addresses, shards, owners, failing=()):
        """Replaces the whole table; what does not fit together raises ValueError and changes nothing.

        addresses: [(Address, whether it is a replica)]. shards: [(index of the primary in addresses, or -1; tuple of
        those of the replicas)]. owners: see SlotTable.load. An address that is there twice is one node, a primary if
        it is one anywhere. failing: the addresses of those that the cluster has voted failed.

        What is under way at a node that has failed and lost its role is decided at once: see forward.silence.
        """
        cdef Node node
        cdef dict old = self.nodes, nodes = {}      # hashing an address takes longer than all else here: do it seldom
        cdef list placed = [], made = [], changed = [], failed = [], before = self.primaries
        cdef SlotTable table = SlotTable()
        cdef SlotTable slots = self.slots
        cdef list known_shards = self.shards
        cdef list known = [(address, bool(replica)) for address, replica in addresses]
        cdef bint failing_now
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
            failing_now = bool(failing) and node.address in failing
            if failing_now and not node.failing:
                failed.append(node)
            node.failing = failing_now
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
        for node in before:
            if not node.owner and node.published == self.published:
                node.deposed = True
                self.unsettle(node, True)
                self.empty(node, node.shared_pools())      # what waits for a connection goes to the new owner at once
        for node in changed:
            self.replace(node)
        for node in old.values():
            if node.published != self.published:
                self.drop(node)
        self.forget_direct()            # once more: whoever was told of a loss may have asked something else
        for node in failed:
            doubt(node)
        for node in old.values():
            if node.failing or node.silent:
                judge(node)
        if self.trackers and self.moved(slots, known_shards):
            self.tell_missed()

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
        node.deposed = False
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
        self.unsettle(node, True)
        return self.empty(node, node.pools())

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
        self.tell_missed()
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

    cdef bint elsewhere(self, Node node, Request* r) noexcept:
        """Whether a read under way at this node may be had from another one, of which nothing bad is known."""
        cdef Node other
        if r.target != TARGET_SLOT or not r.flags & REQ_READ or r.policy == READS_PRIMARY or r.db >= OWN_FIRST or (
            self.slots.owner[r.slot] == NO_SHARD
        ):
            return False
        other = (<Shard> self.shards[self.slots.owner[r.slot]]).pick(r)
        return other is not None and other is not node and not other.shunned(r)

    def owners(self):
        """[(first slot, last slot, label of its primary)], ascending; slots without a primary are left out."""
        return [
            (first, last, (<Shard> self.shards[index]).primary.label)
            for first, last, index in self.slots.ranges() if (<Shard> self.shards[index]).primary is not None
        ]

    def renew(self, labels=None):
        """These nodes, None = all, get new connections, made on first use; the old, returned, drain and close.

        Nothing under way is lost, nor overtaken on a new connection: its client is unsettled. Leases stay.
        """
        cdef Node node
        cdef list old = []
        self.reactor.tick()
        self.forget_direct()
        for node in self.nodes.values():
            old += self.replace(node) if labels is None or node.label in labels else []
        self.forget_direct()            # as in publish
        return old

    def warm(self, int proto):
        """Connects to every primary that is not connected yet."""
        cdef Node node
        cdef Backend b
        for node in self.primaries:
            for b in self.fill(node, proto, 0) if not node.paused else ():
                b.demand()

    def sweep(self):
        """Deadlines, stalls, silence and trimming of every connection; to be called some ten times a second."""
        cdef Node node
        cdef Backend b
        cdef Pool pool
        self.reactor.tick()
        for node in [*self.nodes.values(), *self.retired]:
            for b in node.backends():
                b.sweep(self.reactor.now)
            for pool in node.numbered.values():
                self.trim(pool)
            if watch(node, self.settings, self.reactor.now):
                self.port.suspected(node)
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
                if result == CHOSEN and len((<Backend> self.chosen).pool.backends) == 1:
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
            node = (<Shard> self.shards[index]).pick(r)
            return WAIT if node is None else self.at(node, r)
        if r.target == TARGET_ANY:
            return self.anywhere(r)
        if r.target == TARGET_NODE or r.target == TARGET_SHARD or r.target == TARGET_EXTRA:
            node = <Node> self.numbered.get(r.node)
            if r.target == TARGET_SHARD and (node is None or not node.owner):
                return self.heir(r)
            if node is None:
                return LOST
            if r.target == TARGET_EXTRA and not node.owner and not node.paused and node.shunned(r):
                return HOPELESS
            return self.at(node, r)
        lease = <Backend> r.lease
        if lease.state == BACKEND_CLOSED:
            return LOST
        lease.demand()
        self.chosen = r.lease
        return CHOSEN

    cdef bint in_vain(self, const Request* r) noexcept:
        """Whether a request that is held would only be held again: the primary it is for is down, and is waited for.

        A look at the many that are held for one node must cost less than finding out for each what it finds.
        """
        cdef int index
        cdef Node node
        cdef int64_t down_ns
        if r.target != TARGET_SLOT or (r.flags & REQ_READ and r.policy != READS_PRIMARY) or not self.known:
            return False
        index = self.slots.owner[r.slot]
        if index == NO_SHARD:
            return False
        node = (<Shard> self.shards[index]).primary
        if node is None:
            return True
        if node.paused:
            return False                # it waits for the end of that, and its time stands still
        down_ns = node.pool(r.proto, r.db).down_since_ns
        return down_ns != 0 and self.reactor.now - down_ns <= self.failover_ns

    cdef int anywhere(self, Request* r) noexcept:
        """Any primary: the one its client was served by before as long as that will do, so that what one client
        publishes stays in order while the list of primaries changes."""
        cdef Node node = <Node> self.numbered.get(r.node) if r.node else None
        cdef Py_ssize_t n = len(self.primaries), i
        if n == 0:
            return UNCOVERED
        if node is None or node.replica or node.paused or node.pool(r.proto, r.db).down_since_ns or not node.owner:
            for i in range(n):
                node = <Node> self.primaries[(r.affinity + i) % n]
                if node.pool(r.proto, r.db).down_since_ns == 0 and not node.paused:
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

    cdef bint moved(self, SlotTable slots, list shards):
        """Whether any slot had another primary in that table."""
        cdef int slot, was, now, seen_was = -1, seen_now = -1
        for slot in range(SLOTS):
            was = slots.owner[slot]
            now = self.slots.owner[slot]
            if was == seen_was and now == seen_now:
                continue
            seen_was = was
            seen_now = now
            before = None if was == NO_SHARD else (<Shard> shards[was]).primary
            if before is not (None if now == NO_SHARD else (<Shard> self.shards[now]).primary):
                return True
        return False

    cdef void tell_missed(self) noexcept:
        """A slot has another primary: a key of it may have been changed there before anybody read it there."""
        cdef Owner owner
        for owner in list(self.trackers.values()):
            owner.missed()

    cdef void asked(self, Request* r) noexcept:
        """ASK is followed: a key that was not there may come to be at the node that imports its slot, and the one it
        was looked for at will not tell. From now on such keys are looked for there, so this need not be said for each.
        """
        cdef Owner owner
        if not self.trackers:
            return
        if self.reactor.now - <int64_t> self.asked_ns.get(r.slot, -ASKED_NS) >= ASKED_NS:
            if len(self.asked_ns) > SLOTS // 16:
                self.asked_ns.clear()
            self.asked_ns[r.slot] = self.reactor.now
            self.tell_missed()
        if r.db >= OWN_FIRST and r.flags & REQ_CACHING:
            owner = self.trackers.get(r.db)     # ASKING and CLIENT CACHING cannot both come right before a command:
            if owner is not None:               # so what this one reads is not remembered for it
                owner.missed()
