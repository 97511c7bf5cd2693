# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What all clients of a worker share (`DataPath`), and what holds for all clients of a listener (`ClientSettings`)."""
cimport cython

from proxy.commands.keys cimport keys_free
from proxy.forward.reactor cimport Peer
from proxy.forward.split cimport plan_free
from proxy.resp.inline cimport inline_free
from proxy.resp.scanner cimport args_free

from proxy.forward.router import READ_POLICIES


@cython.final
cdef class ClientSettings(OutputLimits):
    """What holds for all clients of a listener; sizes in bytes, see the .pxd.

    One object per listener for the life of a worker: a reload changes it in place (`update`), so that its clients
    follow. It belongs to the data path of its first client, whose nodes may take less than it allows (`clamp`).
    """

    def __cinit__(self, *, reads="primary", bint password=False, max_pending=1024,
                  max_pending_bytes=16 << 20, soft_output=1 << 20, hard_output=1 << 30, max_query=1 << 30,
                  max_bulk=512 << 20, max_arguments=1 << 20, timeout_ns=5_000_000_000):
        self.limits.max_inline = 65536
        self.update(
            reads=reads, password=password, max_pending=max_pending, max_pending_bytes=max_pending_bytes,
            soft_output=soft_output, hard_output=hard_output, max_query=max_query, max_bulk=max_bulk,
            max_arguments=max_arguments, timeout_ns=timeout_ns,
        )

    def update(self, *, reads=None, password=None, max_pending=None, max_pending_bytes=None, soft_output=None,
               hard_output=None, max_query=None, max_bulk=None, max_arguments=None, timeout_ns=None):
        """Changes what is given, all or nothing; the errors are those of the constructor.

        Clients that wait for room are looked at again; without a password all are authenticated.
        """
        cdef uint8_t own_reads = self.reads if reads is None else READ_POLICIES.index(reads)
        cdef bint own_password = self.password if password is None else password
        cdef uint32_t own_pending = self.max_pending if max_pending is None else max_pending
        cdef size_t own_pending_bytes = self.max_pending_bytes if max_pending_bytes is None else max_pending_bytes
        cdef size_t own_soft = self.soft_output if soft_output is None else soft_output
        cdef size_t own_hard = self.hard_output if hard_output is None else hard_output
        cdef size_t own_query = self.own_max_query if max_query is None else max_query
        cdef int64_t own_bulk = self.own_max_bulk if max_bulk is None else max_bulk
        cdef int64_t own_arguments = self.limits.max_args if max_arguments is None else max_arguments
        cdef int64_t own_timeout_ns = self.timeout_ns if timeout_ns is None else timeout_ns
        self.reads = own_reads
        self.password = own_password
        self.max_pending = own_pending
        self.max_pending_bytes = own_pending_bytes
        self.soft_output = own_soft
        self.hard_output = own_hard
        self.own_max_query = own_query
        self.own_max_bulk = own_bulk
        self.limits.max_args = own_arguments
        self.timeout_ns = own_timeout_ns
        self.clamp()
        if self.path is None:
            return
        for client in self.path.clients:
            if client.settings is self:
                if not own_password:
                    client.authenticated = True
                self.path.reactor.touch(<Peer> client)      # its flush goes on where there is room now

    cdef void clamp(self) noexcept:
        """No more than every node takes: a node closes the connection, which others share, on what is too much."""
        self.limits.max_bulk = self.own_max_bulk
        self.max_query = self.own_max_query
        if self.path is None:
            return
        if 0 < self.path.node_max_bulk < self.own_max_bulk:
            self.limits.max_bulk = self.path.node_max_bulk
        if 0 < self.path.node_max_query < self.own_max_query:
            self.max_query = self.path.node_max_query


@cython.final
cdef class DataPath:
    """What all clients of a worker share.

    responder: proxy.serve.responder.Responder, asked for whatever is not a plain forward.
    """

    def __cinit__(self, Reactor reactor, Exchange exchange, Counters counters, CommandTable table, responder):
        self.reactor = reactor
        self.exchange = exchange
        self.leases = Leases(exchange.router)
        self.counters = counters
        self.counts = counters.block
        self.table = table
        self.responder = responder
        self.clients = set()
        self.settings = []
        self.lingering = set()
        self.held = set()
        self.gated = {}
        self.left = set()
        self.most_left = 1024
        self.tracking = set()
        self.metric_names = {}

    def __dealloc__(self):
        args_free(&self.args)
        inline_free(&self.inline_frame)
        keys_free(&self.keys)
        plan_free(&self.plan)

    cdef void adopt(self, ClientSettings settings):
        """Takes the settings of a listener as its own. ValueError when they belong to another data path."""
        if settings.path is self:
            return
        if settings.path is not None:
            raise ValueError("these settings belong to another data path")
        settings.path = self
        self.settings.append(settings)
        settings.clamp()

    cdef bint keeps(self, client, bint draining) noexcept:
        """Whether a client that is held back and has ended its input stays until that is carried out: at a PROXY PAUSE,
        of which clients are to notice nothing. In Redis's own (CLIENT PAUSE) what was held goes with the client.

        Each takes a connection and its memory, and those who lose patience come back as new clients: only so many stay.
        """
        if client not in self.gated:
            return False
        if not draining and client not in self.left:
            if <size_t> len(self.left) >= self.most_left:
                return False
            self.left.add(client)
        return True

    cdef void let_go(self, client):
        """A client that was held back is closed, or goes on."""
        self.held.discard(client)
        self.gated.pop(client, None)
        self.left.discard(client)

    @property
    def client_memory(self):
        """Bytes held for all clients: see proxy.forward.account."""
        return self.reactor.memory

    @property
    def max_memory(self):
        """What they may come to; 0 = no limit. What happens then: see proxy.forward.memory."""
        return self.most_memory

    @max_memory.setter
    def max_memory(self, int64_t size):
        if size < 0:
            raise ValueError(f"no size: {size}")
        self.most_memory = size
        if self.reactor.guard is not None:
            self.reactor.guard.flush()

    def limit(self, max_bulk, max_query):
        """What the nodes take: the smallest proto-max-bulk-len and client-query-buffer-limit, in bytes; 0 = unknown."""
        cdef ClientSettings settings
        self.node_max_bulk = max_bulk
        self.node_max_query = max_query
        for settings in self.settings:
            settings.clamp()

    def reject(self):
        """Counts a connection that was turned away: it is one of Counters.gone."""
        self.counts.rejected += 1
