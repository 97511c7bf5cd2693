"""Which arguments of a command are keys."""
from libc.stdint cimport uint32_t

from proxy.commands.lookup cimport Command
from proxy.resp.scanner cimport Arg

cdef struct KeyList:
    uint32_t* v             # argument indexes, ascending as the specs give them
    size_t n
    size_t cap

cdef enum:
    KEYS_OK = 0
    KEYS_INVALID = -1       # arguments do not fit the specs (numkeys no number, beyond the end ...): the server says so
    KEYS_NO_MEMORY = -2

# Fills out (replacing its content) with the indexes of the key arguments.
cdef int find_keys(const Command* c, const char* frame, const Arg* args, size_t argc, KeyList* out) noexcept nogil
cdef void keys_free(KeyList* k) noexcept nogil

# args: of an XREAD or XREADGROUP. Whether it has the option BLOCK, or might have it where servers see a syntax error.
cdef bint asks_to_block(const char* frame, const Arg* args, size_t argc) noexcept nogil
