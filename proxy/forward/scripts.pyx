# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Scripts, as far as the data path sees them on their way: which bodies have been told, which script a command runs.

A body is remembered outside the data path (`keeper`), which is told of each once: a small table of 64-bit hashes, keyed
by a random seed, says of which. So an EVAL costs one pass over its body and neither a SHA1 nor Python. Telling is paid
from a credit, because some clients send another body each time: 200 bodies a second, and 1,000 at once.

A command without keys goes where its script's slot is, so that it meets the node that knows the script: the slot is
made of the script's SHA1 (for a function: of its name), the same for EVAL and EVALSHA and in every worker. That of a
body stands beside its hash.

Who calls it: dispatch (bodies), redirect and parking (names). Invariant: nothing here is for the truth of an answer; a
body that is not told, by a collision or for want of credit, is told another time.
"""
cimport cython
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from proxy.cluster.slot cimport SLOTS, key_slot
from proxy.resp.number cimport string2ll

import os

cdef enum:
    BUCKETS_TOLD = 2048         # of 4 bodies each: 128 KB of memory, of which the kernel gives what is used
    WAYS = 4
    BODY_MAX = 1 << 20          # bytes; longer bodies are neither hashed nor remembered
    NAME_MAX = 128              # bytes of a function's name that count for its slot

cdef int64_t TELL_NS = 5_000_000            # credit that a body costs, and again for each further 4 KB
cdef int64_t CREDIT_NS = 1000 * TELL_NS

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    static inline uint64_t scripts_mix(uint64_t a, uint64_t b) {
        unsigned __int128 product = (unsigned __int128) a * b;
        return (uint64_t) product ^ (uint64_t) (product >> 64);
    }
    /* As wyhash does it: 32 bytes a round in two lanes, by a secret seed. */
    static uint64_t scripts_hash(const char *p, size_t n, const uint64_t *seed) {
        uint64_t a = seed[0] ^ n, b = seed[1], w[4];
        while (n > 32) {
            memcpy(w, p, 32);
            a = scripts_mix(w[0] ^ seed[2], w[1] ^ a);
            b = scripts_mix(w[2] ^ seed[3], w[3] ^ b);
            p += 32;
            n -= 32;
        }
        memset(w, 0, 32);
        memcpy(w, p, n);
        a = scripts_mix(w[0] ^ seed[2], w[1] ^ a);
        b = scripts_mix(w[2] ^ seed[3], w[3] ^ b);
        a = scripts_mix(a ^ seed[1], b ^ seed[3]);
        return a ? a : 1;
    }
    """
    uint64_t scripts_hash(const char* p, size_t n, const uint64_t* seed) noexcept nogil

cdef extern from "strings.h" nogil:
    int strncasecmp(const char* a, const char* b, size_t n)


@cython.final
cdef class Scripts:
    """See the module. Made by Exchange; the worker sets `keeper`."""

    def __cinit__(self):
        cdef bytes random = os.urandom(sizeof(self.seed))
        memcpy(self.seed, <const char*> random, sizeof(self.seed))
        self.seed[2] |= 1
        self.seed[3] |= 1
        self.credit_ns = CREDIT_NS

    def __dealloc__(self):
        free(self.told)

    def forget(self):
        if self.told != NULL:
            memset(self.told, 0, BUCKETS_TOLD * WAYS * sizeof(Told))

    cdef int body(self, const char* p, size_t n, bint keyless, int64_t now) noexcept:
        """A client runs the script p[0:n]: tells the keeper, once. Its slot, if `keyless` wants one; else maybe -1."""
        cdef Told* bucket
        cdef uint64_t h
        cdef int64_t price = TELL_NS * <int64_t> (1 + n // 4096)
        cdef bint told
        cdef bytes sha
        cdef int i, slot
        self.called = False
        if n > BODY_MAX or self.keeper is None:
            return -1
        if self.told == NULL:
            self.told = <Told*> calloc(BUCKETS_TOLD * WAYS, sizeof(Told))
            if self.told == NULL:
                return -1
        h = scripts_hash(p, n, self.seed)
        bucket = self.told + (h % BUCKETS_TOLD) * WAYS
        for i in range(WAYS):
            if bucket[i].hash == h:
                return bucket[i].slot
        self.credit_ns = min(CREDIT_NS, self.credit_ns + now - self.credited_ns)
        self.credited_ns = now
        told = self.credit_ns >= price
        if not told and not keyless:
            return -1
        self.called = True
        try:
            sha = self.keeper.seen(p[:n], told)
            slot = slot_of_sha(sha, len(sha))
        except Exception as error:
            self.raised(error)
            return -1
        if told:
            self.credit_ns -= price
            for i in range(WAYS - 1, 0, -1):
                bucket[i] = bucket[i - 1]
            bucket[0].hash = h
            bucket[0].slot = <int16_t> slot
        return slot

    cdef object load(self, const char* sha):
        """ScriptKeeper.load, which see."""
        if self.keeper is None:
            return None
        try:
            return self.keeper.load(sha[:SHA_LEN].lower())
        except Exception as error:
            self.raised(error)
            return None

    cdef void in_vain(self, const char* sha):
        if self.keeper is not None:
            try:
                self.keeper.in_vain(sha[:SHA_LEN].lower())
            except Exception as error:
                self.raised(error)

    def raised(self, error):
        """A fault of the keeper's, which costs a client no more than a NOSCRIPT."""
        if (tell := getattr(self.keeper, "raised", None)) is not None:
            tell("scripts", error)


cdef const char* argument(const char** at, const char* end, size_t* length) noexcept nogil:
    """The next bulk of a frame, and moves on behind it; NULL when there is none."""
    cdef const char* p = at[0]
    cdef size_t n = 0
    if p == NULL or p >= end or p[0] != c"$":
        return NULL
    p += 1
    while p < end and c"0" <= p[0] <= c"9" and n < 1 << 30:
        n = n * 10 + (p[0] - c"0")
        p += 1
    p += 2                                      # CRLF
    if p > end or n > <size_t> (end - p):
        return NULL
    length[0] = n
    at[0] = p + n + 2 if <size_t> (end - p) >= n + 2 else NULL
    return p


cdef const char* sha_of(const char* frame, size_t n) noexcept nogil:
    cdef const char* end = frame + n
    cdef const char* p = frame
    cdef const char* name
    cdef size_t length = 0
    while p < end and p[0] != c"\n":
        p += 1
    p += 1
    name = argument(&p, end, &length)
    if name == NULL or not (
        (length == 7 and strncasecmp(name, b"evalsha", 7) == 0)
        or (length == 10 and strncasecmp(name, b"evalsha_ro", 10) == 0)
    ):
        return NULL
    name = argument(&p, end, &length)
    return name if name != NULL and length == SHA_LEN else NULL


cdef const char* keys_of(const char* frame, size_t n, size_t* length, size_t* count) noexcept nogil:
    cdef const char* end = frame + n
    cdef const char* p = frame
    cdef const char* found = NULL
    cdef const char* first
    cdef size_t size = 0
    cdef int64_t keys = 0, _
    while p < end and p[0] != c"\n":
        p += 1
    p += 1
    for _ in range(3):                      # its name, the script, the number of keys
        found = argument(&p, end, &size)
        if found == NULL:
            return NULL
    if not string2ll(found, size, &keys) or keys <= 0 or p == NULL:
        return NULL
    first = p
    for _ in range(keys):
        found = argument(&p, end, &size)
        if found == NULL:
            return NULL
    length[0] = found + size + 2 - first
    count[0] = <size_t> keys
    return first if found + size + 2 <= end else NULL


def script_sha(bytes frame not None):
    cdef const char* p = sha_of(frame, len(frame))
    return None if p == NULL else p[:SHA_LEN]


cdef int slot_of_sha(const char* p, size_t n) noexcept nogil:
    """Of a script by its name in hex, of any case; -1 when it is none."""
    cdef int i, digit, slot = 0
    if n != SHA_LEN:
        return -1
    for i in range(4):
        digit = p[i]
        if c"0" <= digit <= c"9":
            digit -= c"0"
        elif c"a" <= digit | 32 <= c"f":
            digit = (digit | 32) - c"a" + 10
        else:
            return -1
        slot = slot * 16 + digit
    return slot % SLOTS


cdef int slot_of_function(const char* p, size_t n) noexcept nogil:
    """Of a function by its name, whose case does not matter (functions.c: dictSdsCaseHash)."""
    cdef char[NAME_MAX] lower
    cdef size_t i
    if n > NAME_MAX:
        n = NAME_MAX
    for i in range(n):
        lower[i] = p[i] | 32 if c"A" <= p[i] <= c"Z" else p[i]
    return key_slot(lower, n)
