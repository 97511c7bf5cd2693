"""The command table as C rows, found by name without touching a Python object."""
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t

from proxy.resp.scanner cimport Arg

cdef enum CommandClass:
    CLASS_FORWARD = 0       # by the slot of its keys; without keys in this call: any primary
    CLASS_ANY = 1           # keyless, any primary answers for all (CONFIG GET, COMMAND DOCS ...)
    CLASS_PING = 2          # answered in the data path
    CLASS_LOCAL = 3         # answered by proxy.serve
    CLASS_SPLIT_MGET = 4    # an array, one element a key
    CLASS_SPLIT_MSET = 5    # +OK; key and value pairs
    CLASS_SPLIT_SUM = 6     # an integer, the sum of the parts
    CLASS_REFUSED = 7       # -ERR command 'x' is not allowed through this proxy
    CLASS_UNSERVED = 8      # not served yet: a clear error
    CLASS_TRANSACTION = 9   # MULTI, EXEC, DISCARD, WATCH, UNWATCH
    CLASS_BLOCKING = 10     # on a leased connection: blocks it; keyless: WAIT, WAITAOF
    CLASS_PUBLISH = 11      # keyless, to the node from which this proxy hears of messages
    CLASS_SCRIPT = 12       # as CLASS_FORWARD; without keys, where its script's slot is

cdef enum:
    CMD_WRITE = 1
    CMD_READONLY = 2
    CMD_BLOCKING = 4
    CMD_NO_AUTH = 8         # allowed before AUTH
    CMD_KNOWN = 16          # false only for the row that stands for all unknown commands
    CMD_KEYLESS = 32        # has no key specs at all
    CMD_SCRIPT = 64         # runs code of a client's own, whose error lines may be anything
    CMD_NO_MULTI = 128      # refused between MULTI and EXEC
    CMD_NO_MONITOR = 512        # administration: MONITOR does not show it
    CMD_MAY_REPLICATE = 256     # writes, or is sent to replicas all the same: held by CLIENT PAUSE WRITE
    CMD_SUBSCRIBED = 1024       # allowed to a RESP2 client that has subscriptions

cdef enum BeginSearch:
    BEGIN_UNKNOWN = 0
    BEGIN_INDEX = 1         # begin = position
    BEGIN_KEYWORD = 2       # keyword, searched from begin (negative: backwards from the end)

cdef enum FindKeys:
    FIND_UNKNOWN = 0
    FIND_RANGE = 1          # last, step, limit as COMMAND gives them
    FIND_KEYNUM = 2         # last = keynumidx, limit = firstkey, step = keystep

cdef enum KeyScan:          # commands whose keys the servers find by code, not by key specs
    SCAN_NONE = 0
    SCAN_SORT = 1           # key 1 and the last STORE
    SCAN_GEORADIUS = 2      # key 1 and the last STORE or STOREDIST
    SCAN_MIGRATE = 3        # key 3, or all after KEYS
    SCAN_XREAD = 4          # the first half of what follows the option STREAMS, which may be a group's name before

cdef struct KeySpec:
    uint8_t begin_kind
    uint8_t find_kind
    int32_t begin
    int32_t last
    int32_t step
    int32_t limit
    char keyword[24]        # upper case
    uint8_t keyword_len

cdef struct Command:
    char name[64]           # lower case; "object|encoding" for a subcommand
    uint8_t name_len
    uint8_t klass           # CommandClass
    uint16_t metric         # index of its name in the counters
    uint32_t flags
    int32_t arity           # as COMMAND gives it: negative = at least
    int32_t only_key        # > 0: exactly one key, at this position; 0: no keys; -1: use specs
    uint16_t nspecs
    uint8_t store_scan      # KeyScan: SORT's STORE keyword anywhere names one more key, and its like
    uint8_t container       # has subcommands: look at the second argument too
    KeySpec* specs

cdef class CommandTable:
    cdef Command* rows
    cdef Py_ssize_t nrows
    cdef Py_ssize_t ntop            # rows before this are commands, from here on subcommands
    cdef uint32_t* buckets          # open addressing, row index + 1
    cdef uint32_t mask
    cdef Command unknown            # a write of unknown keys
    cdef readonly str source        # "built-in" or the server's version

    # The row of the command whose arguments are given (argc >= 1); never NULL.
    cdef const Command* find(self, const char* frame, const Arg* args, size_t argc) noexcept nogil
