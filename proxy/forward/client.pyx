# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A client's connection: bytes in, frames, commands on their way. (Replies: see Ordered.)

States: open -> closing (QUIT, a protocol error, end of input: what was asked before is still answered) -> closed; or,
when the proxy wants it to go: open -> parting (as with the end of input) -> lingering (told the end) -> closed.
An idle client holds no buffer: input is read into the reactor's shared buffer, and only what is left of an incomplete
frame is kept. Commands that are more than a forward go to `DataPath.desk` (proxy.serve).
"""
import time

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int16_t

from proxy.cluster.slot cimport key_slot
from proxy.commands.keys cimport KEYS_NO_MEMORY, KEYS_OK, KeyList, find_keys
from proxy.commands.lookup cimport (
    CLASS_ANY, CLASS_FORWARD, CLASS_PING, CLASS_REFUSED, CLASS_SPLIT_MGET, CLASS_SPLIT_MSET, CLASS_SPLIT_SUM,
    CLASS_UNSERVED, CMD_BLOCKING, CMD_KNOWN, CMD_NO_AUTH, CMD_READONLY,
)
from proxy.forward.buffer cimport BLOCK, buffer_append, buffer_len, buffer_release, buffer_reserve, buffer_shrink
from proxy.forward.counters cimport (
    CLOSE_CLIENT, CLOSE_CROSS_PROTOCOL, CLOSE_ERROR, CLOSE_KILLED, CLOSE_PROTOCOL, CLOSE_QUERY_LIMIT,
    CLOSE_QUIT,
)
from proxy.forward.datapath cimport ClientSettings, DataPath
from proxy.forward.reactor cimport SHARED, WANT_READ
from proxy.forward.request cimport REQ_PART, REQ_READ, request_new
from proxy.forward.split cimport SPLIT_MGET, SPLIT_MSET, SPLIT_SUM, Plan, split_new, split_plan
from proxy.resp.scanner cimport (
    FAULT_UNBALANCED, SCAN_DONE, SCAN_INLINE, SCAN_MORE, args_free, command_scan_reset, scan_command,
)

from proxy.forward.router import READ_POLICIES

cdef extern from "strings.h" nogil:
    int strncasecmp(const char* a, const char* b, size_t n)

cdef extern from "sys/socket.h" nogil:
    ssize_t recv(int fd, void* buf, size_t n, int flags)

cdef enum:
    READ_ROUNDS = 4         # full receive buffers before others get their turn
    ARGS_KEEP = 4096        # a shared argument vector larger than this is given back

cdef const char* PONG = b"+PONG\r\n"
cdef const char* CROSSSLOT = b"-CROSSSLOT Keys in request don't hash to the same slot\r\n"
cdef enum:
    PONG_LEN = 7
    CROSSSLOT_LEN = 56


cdef class Client(Ordered):
    """One client. The Python-visible attributes are what proxy.serve reads and changes."""

    def __cinit__(self, DataPath path, ClientSettings settings, str address, str local_address,
                  uint64_t client_id):
        self.path = path
        self.reactor = path.reactor
        self.settings = settings
        self.fd = -1
        self.id = client_id
        path.turn += 1
        self.affinity = path.turn       # not the id: those of one worker may all be even
        self.address = address
        self.local_address = local_address
        self.user = "default"
        self.name = self.lib_name = self.lib_ver = b""
        self.proto = 2
        self.authenticated = not settings.password
        self.policy = settings.reads
        self.created_s = time.time()
        self.active_ns = self.reactor.now
        command_scan_reset(&self.scan)

    def __dealloc__(self):
        buffer_release(&self.rest)
        args_free(&self.args)

    # -- for proxy.serve -----------------------------------------------------------------------------------------

    @property
    def last_active_s(self):
        """Unix time of the last input."""
        self.reactor.tick()
        return time.time() - (self.reactor.now - self.active_ns) / 1e9

    @property
    def last_command(self):
        """Name of the last command, "other" when it has none of its own in the metrics."""
        for name, index in self.path.counters.metrics.items():
            if index == self.last_metric:
                return name
        return "other"

    @property
    def pending(self):
        """Commands under way."""
        return self.inflight

    @property
    def output_bytes(self):
        """Reply bytes not taken yet."""
        return self.held + buffer_len(&self.out)

    @property
    def query_bytes(self):
        """Input bytes that are no whole command yet."""
        return buffer_len(&self.rest)

    @property
    def reads(self):
        """Name of the read policy in force."""
        return READ_POLICIES[self.policy]

    @property
    def listener_reads(self):
        """Name of the read policy it began with."""
        return READ_POLICIES[self.settings.reads]

    def set_reads(self, name):
        """Changes the read policy; raises ValueError for an unknown name."""
        self.policy = READ_POLICIES.index(name)

    def set_proto(self, int proto):
        """Commands from now on go to backends of this protocol (2 or 3).

        They wait for what is under way: on another connection they could overtake it.
        """
        if proto != self.proto:
            self.unsettled = True
        self.proto = proto

    def close_after_reply(self):
        """Ignores further input and closes once everything asked so far is answered."""
        self.end(CLOSE_QUIT)

    def kill(self):
        """Closes it at once."""
        self.close(CLOSE_KILLED)

    def reset(self):
        """Back to how it was when it connected."""
        self.set_proto(2)
        self.db = 0
        self.name = b""
        self.user = "default"
        self.policy = self.settings.reads
        self.authenticated = not self.settings.password

    # -- input ---------------------------------------------------------------------------------------------------

    cdef void ready(self, bint readable, bint writable) noexcept:
        if writable:
            self.flush()
        if readable and self.fd >= 0:
            if self.eof or self.paused or self.closing:
                if self.lingering_ns:
                    self.ignore()
                else:
                    # None of them is read: this is an error or a hang-up, and nobody is left to take replies.
                    self.close(CLOSE_CLIENT)
            else:
                self.read()

    cdef void read(self) noexcept:
        cdef char* buf
        cdef size_t room, used, want
        cdef ssize_t n
        cdef int _
        cdef bint own
        for _ in range(READ_ROUNDS):
            if self.fd < 0 or self.paused or self.closing:
                return
            own = self.rest.end > self.rest.start
            if own:
                # A long argument doubles the buffer as it really comes, never by what its head announces.
                want = BLOCK
                if self.scan.bulk > <int64_t> BLOCK:
                    want = buffer_len(&self.rest)
                    if want > <size_t> self.scan.bulk + 2:
                        want = <size_t> self.scan.bulk + 2
                    if want < BLOCK:
                        want = BLOCK
                if self.rest.cap - self.rest.end < BLOCK // 4 and not buffer_reserve(&self.rest, want):
                    self.close(CLOSE_ERROR)
                    return
                buf = self.rest.data + self.rest.end
                room = self.rest.cap - self.rest.end
            else:
                buf = self.reactor.shared
                room = SHARED
            n = recv(self.fd, buf, room, 0)
            if n < 0:
                if errno == EINTR:
                    continue
                if errno != EAGAIN:
                    self.close(CLOSE_CLIENT)
                return
            if n == 0:
                self.eof = True
                self.want(self.interest & ~WANT_READ)
                self.reactor.touch(self)
                return
            self.path.counts.client_in += n
            self.active_ns = self.reactor.now
            if own:
                self.rest.end += n
                self.parse_rest()
            else:
                used = self.parse(buf, n)
                if self.fd >= 0 and not self.closing and used < <size_t> n:
                    want = n - used
                    if <int64_t> BLOCK < self.scan.bulk < <int64_t> SHARED:
                        want += <size_t> self.scan.bulk     # saves growing in steps; no more than was read at once
                    if not buffer_reserve(&self.rest, want):
                        self.close(CLOSE_ERROR)
                        return
                    buffer_append(&self.rest, buf + used, n - used)
            if not self.paused and buffer_len(&self.rest) > self.settings.max_query:
                self.close(CLOSE_QUERY_LIMIT)
            if <size_t> n < room:
                return

    cdef void ignore(self) noexcept:
        """Input of a client that was told the end; closed with its own end."""
        cdef ssize_t n
        cdef int _
        for _ in range(READ_ROUNDS):
            n = recv(self.fd, self.reactor.shared, SHARED, 0)
            if n < 0 and errno == EINTR:
                continue
            if n == 0 or (n < 0 and errno != EAGAIN):
                self.close(self.close_reason)
            if n < <ssize_t> SHARED:
                return

    cdef void parse_rest(self) noexcept:
        """Goes on with the client's own buffer."""
        cdef size_t used = self.parse(self.rest.data + self.rest.start, buffer_len(&self.rest))
        if self.fd < 0:
            return
        self.rest.start += used
        if self.rest.start == self.rest.end or self.closing:
            buffer_release(&self.rest)
        elif used:
            buffer_shrink(&self.rest)

    cdef size_t parse(self, const char* buf, size_t n) noexcept:
        """Carries out every whole command in buf[0:n]; returns the bytes done with."""
        cdef size_t done = 0, size
        cdef int rc
        cdef ArgVec* args
        while done < n and self.fd >= 0 and not self.closing:
            if self.overloaded():
                self.paused = True
                self.want(self.interest & ~WANT_READ)
                self.reactor.touch(self)
                break
            args = &self.args if self.scan.want >= 0 else &self.path.args   # in the middle of a frame: its own
            rc = scan_command(&self.scan, args, buf + done, n - done, &self.settings.limits, self.authenticated)
            if rc == SCAN_DONE:
                size = self.scan.pos
                command_scan_reset(&self.scan)
                if args.n:
                    self.dispatch(buf + done, size, args.v, args.n)
                done += size
                if args == &self.args or args.cap > ARGS_KEEP:
                    args_free(args)
            elif rc == SCAN_MORE:
                if self.scan.want >= 0 and args == &self.path.args:
                    self.args = args[0]         # the next client needs the shared one
                    args.v = NULL
                    args.n = args.cap = 0
                break
            elif rc == SCAN_INLINE:
                size = self.scan.pos
                rc = <int> self.scan.line
                command_scan_reset(&self.scan)
                self.inline_command(buf + done, rc)
                done += size
            else:
                self.fault(self.scan.error)
                break
        return done

    cdef void inline_command(self, const char* line, size_t n) noexcept:
        """A command in plain text: written as a frame, then carried out like any other."""
        cdef bytes frame
        cdef ArgVec args
        cdef CommandScan scan
        frame = self.path.desk.inline_frame(line[:n])
        if frame is None:
            self.fault(FAULT_UNBALANCED)
            return
        if not frame:
            return
        args.v = NULL
        args.n = args.cap = 0
        command_scan_reset(&scan)
        if scan_command(&scan, &args, frame, len(frame), &self.settings.limits, self.authenticated) == SCAN_DONE:
            self.dispatch(frame, len(frame), args.v, args.n)
        args_free(&args)

    cdef void fault(self, int code) noexcept:
        """Malformed input: says so as Redis does, and closes after what was asked before is answered."""
        self.say_bytes(0, self.path.desk.fault(code, <unsigned char> self.scan.got, self.address))
        self.end(CLOSE_PROTOCOL)

    # -- commands ------------------------------------------------------------------------------------------------

    cdef void dispatch(self, const char* frame, size_t n, const Arg* args, size_t argc) noexcept:
        cdef const Command* c = self.path.table.find(frame, args, argc)
        cdef int klass = c.klass
        self.total_commands += 1
        self.last_metric = c.metric
        if not self.authenticated and not c.flags & CMD_NO_AUTH:
            self.refuse(c, frame, args, argc, "noauth")
        elif c.flags & CMD_KNOWN and (
            argc != <size_t> c.arity if c.arity > 0 else argc < <size_t> -c.arity
        ):
            self.refuse(c, frame, args, argc, "arity")
        elif klass == CLASS_FORWARD:
            if not c.flags & CMD_KNOWN and self.path.desk.cross_protocol(frame[args[0].off:args[0].off + args[0].len]):
                self.path.desk.attacked(self.address)
                self.close(CLOSE_CROSS_PROTOCOL)
                return
            self.forward(c, frame, n, args, argc)
        elif klass == CLASS_PING:
            if argc == 1:
                self.say(c.metric, PONG, PONG_LEN)
            elif argc == 2:
                self.say_bytes(c.metric, b"$%d\r\n%b\r\n" % (
                    args[1].len, frame[args[1].off:args[1].off + args[1].len]))
            else:
                self.refuse(c, frame, args, argc, "arity")
        elif klass == CLASS_SPLIT_MGET or klass == CLASS_SPLIT_MSET or klass == CLASS_SPLIT_SUM:
            self.split(c, frame, n, args, argc)
        elif klass == CLASS_ANY:
            self.send_on(c, frame, n, -1)
        elif klass == CLASS_REFUSED:
            self.refuse(c, frame, args, argc, "refused")
        elif klass == CLASS_UNSERVED:
            self.refuse(c, frame, args, argc, "unserved")
        else:
            self.local(c, frame, args, argc)

    cdef void forward(self, const Command* c, const char* frame, size_t n, const Arg* args, size_t argc) noexcept:
        """By the slot of its keys; any primary when this call has none."""
        cdef int slot = -1, rc
        cdef size_t i
        cdef KeyList* keys
        cdef const Arg* key
        if c.only_key > 0:
            if <size_t> c.only_key < argc:
                key = &args[c.only_key]
                slot = key_slot(frame + key.off, key.len)
        elif c.only_key < 0:
            keys = &self.path.keys
            rc = find_keys(c, frame, args, argc, keys)
            if rc == KEYS_NO_MEMORY:
                self.close(CLOSE_ERROR)
                return
            if rc == KEYS_OK:
                for i in range(keys.n):
                    key = &args[keys.v[i]]
                    rc = key_slot(frame + key.off, key.len)
                    if slot < 0:
                        slot = rc
                    elif slot != rc:
                        self.say(c.metric, CROSSSLOT, CROSSSLOT_LEN)
                        return
            if c.flags & CMD_BLOCKING and self.blocks(frame, args, argc):
                self.refuse(c, frame, args, argc, "unserved")
                return
        self.send_on(c, frame, n, slot)

    cdef bint blocks(self, const char* frame, const Arg* args, size_t argc) noexcept:
        """Whether XREAD or XREADGROUP is given BLOCK, which only counts before STREAMS."""
        cdef size_t i
        for i in range(1, argc):
            if args[i].len == 5 and strncasecmp(frame + args[i].off, b"BLOCK", 5) == 0:
                return True
            if args[i].len == 7 and strncasecmp(frame + args[i].off, b"STREAMS", 7) == 0:
                return False
        return False

    cdef void send_on(self, const Command* c, const char* frame, size_t n, int slot) noexcept:
        cdef Request* r = self.request(c, n)
        if r == NULL:
            return
        r.slot = <int16_t> slot
        self.path.retry.submit(r, frame, n)

    cdef void split(self, const Command* c, const char* frame, size_t n, const Arg* args, size_t argc) noexcept:
        """One sub-command per slot; a command whose keys share one slot stays what it is: atomic."""
        cdef KeyList* keys = &self.path.keys
        cdef Plan* plan = &self.path.plan
        cdef int kind = SPLIT_SUM
        cdef Request* parent
        cdef Request* r
        cdef uint32_t i
        if c.klass == CLASS_SPLIT_MGET:
            kind = SPLIT_MGET
        elif c.klass == CLASS_SPLIT_MSET:
            kind = SPLIT_MSET
            if argc % 2 == 0:
                self.refuse(c, frame, args, argc, "arity")
                return
        if find_keys(c, frame, args, argc, keys) != KEYS_OK or not split_plan(plan, kind, frame, args, keys):
            self.close(CLOSE_ERROR)
            return
        if plan.nparts == 1:
            self.send_on(c, frame, n, plan.parts[0].slot)
            return
        parent = self.request(c, n)
        if parent == NULL:
            return
        parent.split = split_new(plan, kind, keys)
        if parent.split == NULL:
            self.close(CLOSE_ERROR)
            return
        self.path.counts.splits[c.metric] += 1
        for i in range(plan.nparts):
            r = request_new()
            if r == NULL:
                self.close(CLOSE_ERROR)         # parts under way keep the parent alive; see close()
                parent.split.left -= plan.nparts - i
                return
            r.flags = REQ_PART | (parent.flags & REQ_READ)
            r.parent = parent
            r.start_ns = parent.start_ns
            r.deadline_ns = parent.deadline_ns
            r.affinity = parent.affinity
            r.command = parent.command
            r.policy = parent.policy
            r.proto = parent.proto
            r.slot = plan.parts[i].slot
            parent.split.parts[i] = r
        for i in range(plan.nparts):            # a failing last part may finish, and free, the parent
            self.path.retry.submit(
                parent.split.parts[i], plan.bytes.data + plan.parts[i].off, plan.parts[i].len)

    cdef Request* request(self, const Command* c, size_t n) noexcept:
        """A new request of n bytes at the end of the order; NULL (and the client closed) when there is no memory."""
        cdef Request* r = request_new()
        if r == NULL:
            self.close(CLOSE_ERROR)
            return NULL
        r.client = <void*> self
        r.start_ns = self.reactor.now
        r.deadline_ns = r.start_ns + self.settings.timeout_ns
        r.affinity = self.affinity
        r.command = c.metric
        r.flags = REQ_READ if c.flags & CMD_READONLY else 0
        r.policy = self.policy
        r.proto = self.proto
        r.len = n
        self.append(r)
        return r

    cdef void local(self, const Command* c, const char* frame, const Arg* args, size_t argc) noexcept:
        """Answered by proxy.serve."""
        cdef size_t i
        cdef list words = []
        cdef int metric = c.metric
        for i in range(argc):
            words.append(frame[args[i].off:args[i].off + args[i].len])
        self.say_bytes(metric, self.path.desk.answer(self, words))

    cdef void refuse(self, const Command* c, const char* frame, const Arg* args, size_t argc, str why) noexcept:
        """Answered with an error that proxy.serve words."""
        cdef int metric = c.metric
        name = frame[args[0].off:args[0].off + args[0].len]
        sub = frame[args[1].off:args[1].off + args[1].len] if c.container and argc > 1 else None
        self.say_bytes(metric, self.path.desk.refuse(why, c.name[:c.name_len], name, sub))

    cdef void resume(self) noexcept:
        self.parse_rest()
        if self.fd < 0 or self.paused or self.closing:
            return
        if self.eof:
            self.reactor.touch(self)            # what came before the end of input is under way: close after it
        else:
            self.want(self.interest | WANT_READ)

    cdef void left(self) noexcept:
        buffer_release(&self.rest)
        args_free(&self.args)
