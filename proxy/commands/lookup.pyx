# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The command table as C rows, found by name without touching a Python object.

Why: every command needs its row, so a look-up has to cost nanoseconds and no Python. Built from `rows` by the worker,
at its start and whenever control publishes new ones, and by control for the counters' indexes; `find` is called by the
data path.

Invariants:
- A table never changes once built. A `const Command*` points into its table, so whoever holds one must keep the table
  alive.
- `find` never returns NULL and reads nothing outside the arguments it is given.
- Commands come first in `rows` ([0, ntop)), subcommands after them, so that a client sending the literal name
  `object|encoding` finds nothing, as on a server.
- Names are compared eight bytes at a time after folding A-Z only: Redis's strcasecmp in the C locale.
- Of a name that no command has, what is before a NUL is looked up: servers hash the whole name but compare C strings,
  so that `shutdown\\0x` is SHUTDOWN there whenever it falls into the same bucket of their hash table.
"""
import sys
from time import perf_counter_ns

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcpy

from proxy.commands.keys cimport KEYS_NO_MEMORY, KEYS_OK, KeyList, asks_to_block, find_keys, keys_free
from proxy.resp.scanner cimport Arg

from proxy.commands import dispositions
from proxy.commands.rows import Row

# load_short() puts bytes where a little-endian load would.
if sys.byteorder != "little":
    raise ImportError("proxy.commands.lookup needs a little-endian machine")

cdef enum:
    NAME_MAX = 63           # bytes of a name in Command.name, which ends in at least one NUL
    METRICS_MAX = 1024      # names in the counters; index 0 stands for all others

cdef uint64_t HASH_MULTIPLIER = 0x9E3779B97F4A7C15ULL

# Rows whose keys the servers find by code of their own, because key specs cannot say it (db.c, *GetKeys).
_KEY_SCANS = {
    "sort": SCAN_SORT,
    "georadius": SCAN_GEORADIUS,
    "georadiusbymember": SCAN_GEORADIUS,
    "migrate": SCAN_MIGRATE,
    "xread": SCAN_XREAD,
    "xreadgroup": SCAN_XREAD,
}

# The C numbers, for the test that compares the Python enums of `dispositions` with them.
_C_CLASSES = {
    "FORWARD": CLASS_FORWARD, "PUBLISH": CLASS_PUBLISH, "ANY": CLASS_ANY, "PING": CLASS_PING, "LOCAL": CLASS_LOCAL,
    "SPLIT_MGET": CLASS_SPLIT_MGET, "SPLIT_MSET": CLASS_SPLIT_MSET, "SPLIT_SUM": CLASS_SPLIT_SUM,
    "REFUSED": CLASS_REFUSED, "UNSERVED": CLASS_UNSERVED, "TRANSACTION": CLASS_TRANSACTION,
    "BLOCKING": CLASS_BLOCKING, "SCRIPT": CLASS_SCRIPT,
}
_C_FLAGS = {
    "WRITE": CMD_WRITE, "READONLY": CMD_READONLY, "BLOCKING": CMD_BLOCKING, "NO_AUTH": CMD_NO_AUTH,
    "KNOWN": CMD_KNOWN, "KEYLESS": CMD_KEYLESS, "SCRIPT": CMD_SCRIPT,
    "NO_MULTI": CMD_NO_MULTI, "MAY_REPLICATE": CMD_MAY_REPLICATE, "NO_MONITOR": CMD_NO_MONITOR,
    "SUBSCRIBED": CMD_SUBSCRIBED,
}


cdef inline uint64_t load8(const char* p) noexcept nogil:
    cdef uint64_t w
    memcpy(&w, p, 8)
    return w


cdef inline uint64_t load_short(const char* p, size_t n) noexcept nogil:
    # 1 to 8 bytes as load8() would give them with zeros behind, reading only those n: two loads that may overlap.
    cdef uint32_t low, high
    cdef uint16_t half
    if n >= 4:
        memcpy(&low, p, 4)
        memcpy(&high, p + n - 4, 4)
        return <uint64_t>low | (<uint64_t>high << ((n - 4) * 8))
    if n >= 2:
        memcpy(&half, p, 2)
        return <uint64_t>half | (<uint64_t><uint8_t>p[n - 1] << ((n - 1) * 8))
    return <uint8_t>p[0]


cdef inline uint64_t fold(uint64_t w) noexcept nogil:
    # A-Z to a-z in each of eight bytes, everything else (bytes above 127 too) as it is.
    cdef uint64_t low7 = w & 0x7F7F7F7F7F7F7F7FULL
    cdef uint64_t from_a = low7 + 0x3F3F3F3F3F3F3F3FULL
    cdef uint64_t above_z = low7 + 0x2525252525252525ULL
    return w | (((from_a ^ above_z) & ~w & 0x8080808080808080ULL) >> 2)


cdef inline uint32_t hash_name(const char* p, size_t n) noexcept nogil:
    cdef uint64_t h
    cdef size_t at
    if n <= 8:
        h = fold(load_short(p, n))
    else:
        h = fold(load8(p))
        at = 8
        while at + 8 < n:
            h = (h ^ (h >> 29)) * HASH_MULTIPLIER ^ fold(load8(p + at))
            at += 8
        h = (h ^ (h >> 29)) * HASH_MULTIPLIER ^ fold(load8(p + n - 8))
    return <uint32_t>((h * HASH_MULTIPLIER) >> 32)


cdef inline bint same_name(const Command* row, const char* p, size_t n) noexcept nogil:
    cdef size_t at
    if row.name_len != n:
        return False
    if n <= 8:
        return load8(row.name) == fold(load_short(p, n))
    at = 0
    while at + 8 < n:
        if load8(row.name + at) != fold(load8(p + at)):
            return False
        at += 8
    return load8(row.name + n - 8) == fold(load8(p + n - 8))


cdef inline Py_ssize_t row_of(const Command* rows, const uint32_t* buckets, uint32_t mask, const char* p,
                              size_t n) noexcept nogil:
    # The index of the row of this name, -1 without one. The table is at most half full, so the walk ends.
    cdef uint32_t at, found
    if n - 1 >= NAME_MAX:       # also 0
        return -1
    at = hash_name(p, n) & mask
    while True:
        found = buckets[at]
        if found == 0:
            return -1
        if same_name(&rows[found - 1], p, n):
            return found - 1
        at = (at + 1) & mask


cdef void enter(const Command* rows, uint32_t* buckets, uint32_t mask, Py_ssize_t i) noexcept nogil:
    cdef uint32_t at = hash_name(rows[i].name, rows[i].name_len) & mask
    while buckets[at] != 0:
        at = (at + 1) & mask
    buckets[at] = <uint32_t>(i + 1)


cdef Py_ssize_t subcommand_of(const Command* rows, const uint32_t* buckets, uint32_t mask, const Command* container,
                              const char* p, size_t n) noexcept nogil:
    cdef char full[NAME_MAX + 1]
    cdef size_t head = container.name_len
    if head + 1 + n > NAME_MAX:
        return -1
    memcpy(full, container.name, head)
    full[head] = c"|"
    if n > 0:
        memcpy(full + head + 1, p, n)
    return row_of(rows, buckets, mask, full, head + 1 + n)


cdef inline size_t c_length(const char* frame, const Arg* arg) noexcept nogil:
    # What strlen() would say of the argument.
    cdef const char* p = frame + arg.off
    cdef const char* nul = <const char*>memchr(p, 0, arg.len) if arg.len else NULL
    return <size_t>(nul - p) if nul != NULL else arg.len


cdef class CommandTable:
    """The commands of one kind of server, by name. See lookup.pyi for the Python side."""

    def __cinit__(self, rows, str source not None, dict metrics not None, allow=(), deny=()):
        cdef Py_ssize_t i, size = 16
        self.source = source
        unique = {}
        for row in rows:
            if "|" not in row.name:
                unique[row.name] = row
        denied = dispositions.full_names(deny)
        for name in denied:
            if "|" not in name and name[:1] != "@":
                unique.setdefault(name, Row(name, -1, (), 0, 0, 0))     # though no server has told of it yet
        subs = {sub.name: sub for row in unique.values() for sub in row.subcommands if "|" in sub.name}
        ordered = [row for row in [*unique.values(), *subs.values()] if 0 < len(row.name.encode()) <= NAME_MAX]
        allowed = dispositions.full_names(allow)
        metrics.setdefault("other", 0)

        self.nrows = len(ordered)
        self.ntop = sum(1 for row in ordered if "|" not in row.name)
        while size < 2 * self.nrows:
            size *= 2
        self.mask = <uint32_t>(size - 1)
        self.rows = <Command*>calloc(max(self.nrows, 1), sizeof(Command))
        self.buckets = <uint32_t*>calloc(size, sizeof(uint32_t))
        if self.rows == NULL or self.buckets == NULL:
            raise MemoryError
        for i in range(self.nrows):
            fill_row(&self.rows[i], ordered[i], allowed, denied, metrics)
            enter(self.rows, self.buckets, self.mask, i)

        self.unknown.klass = CLASS_FORWARD
        self.unknown.flags = CMD_WRITE
        self.unknown.arity = -1
        self.unknown.only_key = -1

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.rows != NULL:
            for i in range(self.nrows):
                free(self.rows[i].specs)
            free(self.rows)
        free(self.buckets)

    cdef const Command* find(self, const char* frame, const Arg* args, size_t argc) noexcept nogil:
        cdef const Command* row
        cdef Py_ssize_t i = row_of(self.rows, self.buckets, self.mask, frame + args[0].off, args[0].len)
        if i < 0:
            i = row_of(self.rows, self.buckets, self.mask, frame + args[0].off, c_length(frame, &args[0]))
        if i < 0 or i >= self.ntop:
            return &self.unknown
        row = &self.rows[i]
        if row.container and argc > 1:
            i = subcommand_of(self.rows, self.buckets, self.mask, row, frame + args[1].off, args[1].len)
            if i < 0:
                i = subcommand_of(self.rows, self.buckets, self.mask, row, frame + args[1].off,
                                  c_length(frame, &args[1]))
            if i >= 0:
                return &self.rows[i]
        return row

    def __len__(self):
        return self.nrows

    def refused(self):
        return [self.rows[i].name[:self.rows[i].name_len] for i in range(self.nrows)
                if self.rows[i].klass == CLASS_REFUSED]

    def names(self):
        return [self.rows[i].name[:self.rows[i].name_len].decode() for i in range(self.nrows)]

    def lookup(self, *args):
        cdef Arguments given = Arguments(args)
        cdef const Command* row = self.find(given.frame, given.args, given.n)
        return {
            "name": row.name[:row.name_len].decode(),
            "klass": dispositions.CommandClass(row.klass),
            "flags": dispositions.CommandFlag(row.flags),
            "arity": row.arity,
            "only_key": row.only_key,
            "metric": row.metric,
        }

    def keys(self, *args):
        cdef Arguments given = Arguments(args)
        cdef KeyList found
        cdef int outcome
        found.v = NULL
        found.n = found.cap = 0
        outcome = find_keys(self.find(given.frame, given.args, given.n), given.frame, given.args, given.n, &found)
        try:
            if outcome == KEYS_NO_MEMORY:
                raise MemoryError
            return [found.v[i] for i in range(<Py_ssize_t>found.n)] if outcome == KEYS_OK else None
        finally:
            keys_free(&found)

    @staticmethod
    def asks_to_block(*args):
        cdef Arguments given = Arguments(args)
        return bool(asks_to_block(given.frame, given.args, given.n))


cdef class Arguments:
    """Python bytes laid out as the scanner leaves a command: one frame and the spans of its arguments."""

    cdef bytes whole
    cdef const char* frame
    cdef Arg* args
    cdef size_t n

    def __cinit__(self, tuple given not None):
        cdef size_t at = 0
        if not given:
            raise ValueError("a command has at least one argument")
        self.whole = b"".join(given)        # no bytes between: a read beyond an argument's end would be seen
        self.frame = self.whole
        self.n = len(given)
        self.args = <Arg*>malloc(self.n * sizeof(Arg))
        if self.args == NULL:
            raise MemoryError
        for i, one in enumerate(given):
            self.args[i].off = at
            self.args[i].len = len(one)
            at += self.args[i].len

    def __dealloc__(self):
        free(self.args)


cdef int fill_row(Command* to, object row, object allowed, object denied, dict metrics) except -1:
    # May raise half way: the row is zeroed before, so that freeing it is safe at any time.
    cdef bytes name = row.name.encode()
    cdef KeySpec* spec
    memcpy(to.name, <const char*>name, len(name))
    to.name_len = <uint8_t>len(name)
    to.klass = <uint8_t>dispositions.classify(row, allowed, denied)
    to.metric = <uint16_t>metric_of(row.name, metrics)
    to.flags = <uint32_t>dispositions.command_flags(row)
    to.arity = row.arity
    to.container = 1 if row.subcommands else 0
    to.store_scan = _KEY_SCANS.get(row.name, SCAN_NONE)
    # Keys that the specs do not give are left to the servers, as GET_KEYSPEC_RETURN_PARTIAL does.
    specs = [s for s in row.key_specs() if s.complete and len(s.keyword.encode()) < <Py_ssize_t>sizeof(spec.keyword)]
    if specs:
        to.specs = <KeySpec*>calloc(len(specs), sizeof(KeySpec))
        if to.specs == NULL:
            raise MemoryError
    for s in specs:
        fill_spec(&to.specs[to.nspecs], s)
        to.nspecs += 1
    if to.store_scan == SCAN_NONE and to.nspecs == 1 and is_single(&to.specs[0]):
        to.only_key = to.specs[0].begin
    else:
        to.only_key = -1 if row.keyed else 0
    return 0


cdef int fill_spec(KeySpec* to, object spec) except -1:
    cdef bytes keyword = spec.keyword.upper().encode()
    to.begin_kind = BEGIN_INDEX if spec.begin == "index" else BEGIN_KEYWORD
    to.find_kind = FIND_RANGE if spec.find == "range" else FIND_KEYNUM
    to.begin = spec.at
    to.last = spec.last
    to.step = max(<int32_t>spec.step, 1)
    to.limit = spec.limit
    memcpy(to.keyword, <const char*>keyword, len(keyword))
    to.keyword_len = <uint8_t>len(keyword)
    return 0


cdef bint is_single(const KeySpec* spec) noexcept nogil:
    return spec.begin_kind == BEGIN_INDEX and spec.find_kind == FIND_RANGE and spec.last == 0 and spec.begin > 0


cdef int metric_of(str name, dict metrics) except -1:
    index = metrics.get(name)
    if index is None:
        if len(metrics) >= METRICS_MAX:
            return 0
        index = metrics[name] = len(metrics)
    return index


def _bench(CommandTable table not None, tuple command not None, Py_ssize_t times):
    """Nanoseconds of one find() of this command, the mean over so many."""
    cdef Arguments given = Arguments(command)
    cdef Py_ssize_t _
    cdef size_t seen = 0
    begun = perf_counter_ns()
    with nogil:
        for _ in range(times):
            # The sum keeps the compiler from moving the call out of the loop.
            given.args[0].off = seen & 0
            seen += <size_t>table.find(given.frame, given.args, given.n)
    return (perf_counter_ns() - begun + (seen & 0)) / times
