"""What the data path knows of scripts: which bodies it has told of, and which script a command runs."""
from libc.stdint cimport int16_t, int64_t, uint64_t

cdef enum:
    SHA_LEN = 40            # hex digits of a script's name

cdef struct Told:
    uint64_t hash           # of a body; 0 = free
    int16_t slot            # its script's: see slot_of_sha

cdef class Scripts:
    cdef public object keeper       # worker.scripts, or whoever remembers; None = nobody
    cdef Told* told                 # NULL until the first script
    cdef uint64_t[4] seed
    cdef int64_t credit_ns          # what telling may cost at present
    cdef int64_t credited_ns        # when that was
    cdef bint called                # the last body() took Python
    cdef int body(self, const char* p, size_t n, bint keyless, int64_t now) noexcept
    cdef object load(self, const char* sha)
    cdef void in_vain(self, const char* sha)

# Where the name of the script stands in the frame of an EVALSHA or EVALSHA_RO; NULL when it is none.
cdef const char* sha_of(const char* frame, size_t n) noexcept nogil
cdef int slot_of_sha(const char* p, size_t n) noexcept nogil
cdef int slot_of_function(const char* p, size_t n) noexcept nogil

# The keys of an EVAL, EVALSHA or FCALL that has some: `count` bulks, `length` bytes in all; NULL: it is none.
cdef const char* keys_of(const char* frame, size_t n, size_t* length, size_t* count) noexcept nogil
