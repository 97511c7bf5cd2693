"""A key's hash slot: CRC16 (XMODEM) of the key or of its hash tag, modulo 16384."""
from libc.stdint cimport uint16_t

cdef enum:
    SLOTS = 16384

cdef uint16_t key_slot(const char* key, size_t n) noexcept nogil
