# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A key's hash slot, as keyHashSlot of Redis's cluster.c: CRC16 (XMODEM) modulo 16384, of the hash tag if there is one.

forward.router and forward.split call key_slot for every key; Python code has slot_of.

The hash tag is what is between the first '{' and the first '}' after it, unless that is empty. The CRC takes eight
bytes at a time from eight tables (4 KiB, made at import): a bytewise CRC waits for the table at every byte.
"""
from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memchr

cdef uint16_t[8][256] TABLE         # TABLE[k][b]: what byte b does to the CRC of what ends k bytes after it


cdef void make_tables() noexcept:
    cdef int b, k, _bit
    cdef uint16_t crc
    for b in range(256):
        crc = <uint16_t>(b << 8)
        for _bit in range(8):
            crc = <uint16_t>((crc << 1) ^ 0x1021) if crc & 0x8000 else <uint16_t>(crc << 1)
        TABLE[0][b] = crc
    for k in range(1, 8):
        for b in range(256):
            crc = TABLE[k - 1][b]
            TABLE[k][b] = <uint16_t>(crc << 8) ^ TABLE[0][crc >> 8]


make_tables()


cdef inline uint16_t crc16(const uint8_t* p, size_t n) noexcept nogil:
    cdef uint16_t crc = 0
    while n >= 8:
        crc = (TABLE[7][p[0] ^ (crc >> 8)] ^ TABLE[6][p[1] ^ (crc & 0xFF)] ^ TABLE[5][p[2]] ^ TABLE[4][p[3]]
               ^ TABLE[3][p[4]] ^ TABLE[2][p[5]] ^ TABLE[1][p[6]] ^ TABLE[0][p[7]])
        p += 8
        n -= 8
    while n:
        crc = <uint16_t>(crc << 8) ^ TABLE[0][(crc >> 8) ^ p[0]]
        p += 1
        n -= 1
    return crc


cdef uint16_t key_slot(const char* key, size_t n) noexcept nogil:
    cdef const char* end = key + n
    cdef const char* tag
    cdef const char* close
    tag = <const char*>memchr(key, c'{', n) if n else NULL
    if tag != NULL:
        tag += 1
        close = <const char*>memchr(tag, c'}', end - tag) if tag < end else NULL
        if close != NULL and close != tag:
            return crc16(<const uint8_t*>tag, close - tag) & (SLOTS - 1)
    return crc16(<const uint8_t*>key, n) & (SLOTS - 1)


def slot_of(const uint8_t[::1] key not None):
    """The slot of a key, 0 to 16383."""
    return key_slot(<const char*>&key[0] if key.shape[0] else NULL, key.shape[0])
