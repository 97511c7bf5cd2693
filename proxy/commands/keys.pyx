# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Which arguments of a command are keys, by the servers' own rules.

Why: a command goes to the slot of its keys, so the proxy has to find the same keys as the node that will check them.
Called by the router for commands with more than one possible key (`Command.only_key` < 0) and by the splitter. It does
what getKeysUsingKeySpecs of Redis and Valkey (src/db.c) does, with two differences: key specs flagged `not_key` count
(SPUBLISH is routed by its channel), and specs without positions are left out of the table. Where key specs cannot say
it, the servers' own functions (sortGetKeys, georadiusGetKeys, migrateGetKeys, xreadGetKeys) are followed; a command
with no spec at all is taken to have its first argument as key.

asks_to_block is in this module because it reads the same options as xreadGetKeys.

Invariants: an index found is always in [1, argc); each loop is bounded by argc; nothing is allocated but the list,
which keeps its memory from call to call.
"""
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from proxy.commands.lookup cimport (
    BEGIN_INDEX,
    FIND_RANGE,
    SCAN_GEORADIUS,
    SCAN_MIGRATE,
    SCAN_SORT,
    SCAN_XREAD,
    Command,
    KeySpec,
)
from proxy.resp.scanner cimport Arg

cdef enum:
    KEYS_ROOM = 16          # indexes the list starts with


cdef void keys_free(KeyList* k) noexcept nogil:
    free(k.v)
    k.v = NULL
    k.n = k.cap = 0


cdef int find_keys(const Command* c, const char* frame, const Arg* args, size_t argc, KeyList* out) noexcept nogil:
    cdef size_t i
    cdef int outcome
    out.n = 0
    if c.only_key > 0:
        return add(out, c.only_key) if <size_t>c.only_key < argc else KEYS_INVALID
    if c.only_key == 0:
        return KEYS_OK
    if c.store_scan == SCAN_SORT:
        return sort_keys(frame, args, argc, out)
    if c.store_scan == SCAN_GEORADIUS:
        return georadius_keys(frame, args, argc, out)
    if c.store_scan == SCAN_MIGRATE:
        return migrate_keys(frame, args, argc, out)
    if c.store_scan == SCAN_XREAD:
        i = streams_at(frame, args, argc)
        if i:
            return half_keys(i, argc, out)
    if c.nspecs == 0:
        return add(out, 1) if argc > 1 else KEYS_OK
    for i in range(c.nspecs):
        outcome = spec_keys(&c.specs[i], frame, args, <int64_t>argc, out)
        if outcome != KEYS_OK:
            out.n = 0
            return outcome
    return KEYS_OK


cdef inline int add(KeyList* out, size_t index) noexcept nogil:
    if out.n == out.cap and not grow(out, out.n + 1):
        return KEYS_NO_MEMORY
    out.v[out.n] = <uint32_t>index
    out.n += 1
    return KEYS_OK


cdef bint grow(KeyList* out, size_t want) noexcept nogil:
    cdef size_t cap = out.cap * 2 if out.cap else KEYS_ROOM
    cdef uint32_t* v
    if cap < want:
        cap = want
    v = <uint32_t*>realloc(out.v, cap * sizeof(uint32_t))
    if v == NULL:
        return False
    out.v = v
    out.cap = cap
    return True


cdef int spec_keys(const KeySpec* spec, const char* frame, const Arg* args, int64_t argc, KeyList* out) noexcept nogil:
    # Signed 64-bit arithmetic throughout: every number of a spec fits 32 bits, so nothing here overflows.
    cdef int64_t first, last, at, step = spec.step, wanted
    cdef size_t need
    if spec.begin_kind == BEGIN_INDEX:
        first = spec.begin
    else:
        first = after_keyword(spec, frame, args, argc)
        if first == 0:
            return KEYS_OK
    if spec.find_kind == FIND_RANGE:
        if spec.last >= 0:
            last = first + spec.last
        elif spec.limit == 0:
            last = argc + spec.last
        else:
            last = first + (argc - first) / spec.limit + spec.last
        if first >= argc and out.n:
            return KEYS_OK      # PFMERGE with a destination only: nodes route by it (getKeysUsingLegacyRangeSpec)
    else:
        at = first + spec.last
        if first < 1 or at < 1 or at >= argc:
            return KEYS_INVALID
        wanted = count_of(frame + args[at].off, args[at].len)
        if wanted == 0:
            return KEYS_OK      # a script without keys, or an error that any node words
        if wanted < 0 or wanted >= argc:
            return KEYS_INVALID
        first += spec.limit
        last = first + (wanted - 1) * step
    if first < 1 or first >= argc or last < first or last >= argc:
        return KEYS_INVALID
    need = out.n + <size_t>((last - first) / step + 1)
    if out.cap < need and not grow(out, need):
        return KEYS_NO_MEMORY
    while first <= last:
        out.v[out.n] = <uint32_t>first
        out.n += 1
        first += step
    return KEYS_OK


cdef int64_t after_keyword(const KeySpec* spec, const char* frame, const Arg* args, int64_t argc) noexcept nogil:
    # The position behind the keyword, 0 when it is not there. The last argument (searching backwards: the first) is
    # not looked at: nothing could follow it.
    cdef int64_t at = spec.begin if spec.begin > 0 else argc + spec.begin
    cdef int64_t end = argc - 1 if spec.begin > 0 else 1
    cdef int64_t way = 1 if at <= end else -1
    while at != end and 1 <= at < argc:
        if is_word(frame, &args[at], spec.keyword, spec.keyword_len):
            return at + 1
        at += way
    return 0


cdef int64_t count_of(const char* p, size_t n) noexcept nogil:
    # A number as atoi reads it, which is what a cluster's node finds the slot with (genericGetKeys, db.c): blanks, a
    # sign, digits, then anything; beyond a long the nearest long, of which an int keeps the low half. -1: it is none.
    cdef uint64_t value = 0, limit = INT64_MAX
    cdef int32_t count
    cdef size_t i = 0
    cdef bint negative = False
    while i < n and (p[i] == c" " or c"\t" <= p[i] <= c"\r"):
        i += 1
    if i < n and (p[i] == c"-" or p[i] == c"+"):
        negative = p[i] == c"-"
        limit += negative
        i += 1
    while i < n and c"0" <= p[i] <= c"9":
        value = value * 10 + <uint64_t>(p[i] - c"0") if value < limit // 10 else min_of(limit, value, p[i])
        i += 1
    count = <int32_t><uint32_t>(0 - value if negative else value)
    return count if count or (n == 1 and p[0] == c"0") else -1


cdef inline uint64_t min_of(uint64_t limit, uint64_t value, char digit) noexcept nogil:
    # value * 10 + digit, where value is at least a tenth of the limit.
    cdef uint64_t last = <uint64_t>(digit - c"0")
    return limit if value > limit // 10 or last > limit - value * 10 else value * 10 + last


cdef inline bint is_word(const char* frame, const Arg* arg, const char* upper, size_t n) noexcept nogil:
    # strcasecmp of the servers, which ends at a NUL: BLOCK\0 and what follows is BLOCK to them. `upper` is upper case.
    cdef const char* p = frame + arg.off
    cdef size_t i
    cdef char c
    if arg.len < n or (arg.len > n and p[n] != 0):
        return False
    for i in range(n):
        c = p[i]
        if c"a" <= c <= c"z":
            c -= 32
        if c != upper[i]:
            return False
    return True


cdef int sort_keys(const char* frame, const Arg* args, size_t argc, KeyList* out) noexcept nogil:
    # SORT key [BY pattern] [LIMIT offset count] [GET pattern ...] [STORE destination]: of several STOREs the last
    # counts, and the words after LIMIT, GET and BY are no options (sortGetKeys).
    cdef size_t i = 2, store = 0
    if argc < 2:
        return KEYS_INVALID
    while i < argc:
        if is_word(frame, &args[i], b"LIMIT", 5):
            i += 2
        elif is_word(frame, &args[i], b"GET", 3) or is_word(frame, &args[i], b"BY", 2):
            i += 1
        elif is_word(frame, &args[i], b"STORE", 5) and i + 1 < argc:
            store = i + 1
        i += 1
    return with_store(store, out)


cdef int georadius_keys(const char* frame, const Arg* args, size_t argc, KeyList* out) noexcept nogil:
    # GEORADIUS[BYMEMBER] key ... [STORE key | STOREDIST key]: the last of them counts (georadiusGetKeys).
    cdef size_t i = 5, store = 0
    if argc < 2:
        return KEYS_INVALID
    while i + 1 < argc:
        if is_word(frame, &args[i], b"STORE", 5) or is_word(frame, &args[i], b"STOREDIST", 9):
            i += 1
            store = i
        i += 1
    return with_store(store, out)


cdef int with_store(size_t store, KeyList* out) noexcept nogil:
    cdef int outcome = add(out, 1)
    return add(out, store) if outcome == KEYS_OK and store else outcome


cdef int migrate_keys(const char* frame, const Arg* args, size_t argc, KeyList* out) noexcept nogil:
    # MIGRATE host port key|"" db timeout [COPY] [REPLACE] [AUTH p | AUTH2 u p] [KEYS key ...] (migrateGetKeys).
    cdef size_t i = 6
    if argc <= 3:
        return KEYS_INVALID
    while i < argc:
        if is_word(frame, &args[i], b"KEYS", 4):
            if args[3].len > 0:
                return KEYS_INVALID
            i += 1
            while i < argc:
                if add(out, i) != KEYS_OK:
                    return KEYS_NO_MEMORY
                i += 1
            return KEYS_OK
        if is_word(frame, &args[i], b"AUTH", 4):
            i += 1
        elif is_word(frame, &args[i], b"AUTH2", 5):
            i += 2
        i += 1
    return add(out, 3)


cdef inline size_t option_size(const char* frame, const Arg* arg, bint group) noexcept nogil:
    # The arguments an option of XREAD takes, itself included; 0 for STREAMS and for no option. CLAIM: Redis from 8.4.
    if is_word(frame, arg, b"BLOCK", 5) or is_word(frame, arg, b"COUNT", 5):
        return 2
    if group:
        if is_word(frame, arg, b"GROUP", 5):
            return 3
        if is_word(frame, arg, b"CLAIM", 5):
            return 2
        if is_word(frame, arg, b"NOACK", 5):
            return 1
    return 0


cdef size_t streams_at(const char* frame, const Arg* args, size_t argc) noexcept nogil:
    # Where STREAMS is (xreadGetKeys, which takes GROUP and NOACK in XREAD too). 0 for what ends in an error: then the
    # key specs are used, because a newer server may have options that are unknown here.
    cdef size_t i = 1, size
    while i + 1 < argc:
        size = option_size(frame, &args[i], True)
        if size == 0:
            return i if is_word(frame, &args[i], b"STREAMS", 7) and (argc - i) % 2 == 1 else 0
        i += size
    return 0


cdef int half_keys(size_t streams, size_t argc, KeyList* out) noexcept nogil:
    # Keys, then as many ids.
    cdef size_t i
    for i in range(streams + 1, streams + 1 + (argc - streams - 1) // 2):
        if add(out, i) != KEYS_OK:
            return KEYS_NO_MEMORY
    return KEYS_OK


cdef bint asks_to_block(const char* frame, const Arg* args, size_t argc) noexcept nogil:
    # xreadCommand of t_stream.c, which distinguishes the two commands by their length as well. What is a syntax error
    # to it must still not block a shared connection, because another version may know the word.
    cdef bint group = args[0].len == 10
    cdef size_t i = 1, size
    while i < argc:
        if is_word(frame, &args[i], b"BLOCK", 5):
            return True
        size = option_size(frame, &args[i], group)
        if size == 0:
            if is_word(frame, &args[i], b"STREAMS", 7):
                return False
            break
        i += size
    while i < argc:
        if is_word(frame, &args[i], b"BLOCK", 5):
            return True
        i += 1
    return False
