# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The timeout of a blocking command: where it stands, what it is, and the command with what is left of it.

A command that is redirected has waited already. What is not certain to be a timeout is left as it is: the server has
its own words for it.
"""
cimport cython
from libc.stdint cimport int64_t

import re

from proxy.commands.lookup cimport CMD_KEYLESS, SCAN_XREAD

cdef int64_t MS = 1_000_000

_SECONDS = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_INTEGER = re.compile(rb"-?\d+")
_LONGEST_S = 1e9                # a longer timeout is none
# Which argument is the timeout, in seconds; -1: the last.
_TIMEOUTS = {
    **dict.fromkeys((b"blpop", b"brpop", b"bzpopmin", b"bzpopmax", b"brpoplpush", b"blmove"), -1),
    b"blmpop": 1,
    b"bzmpop": 1,
}


@cython.final
cdef class Timeout:
    """See the module."""

    cdef void find(self, Call* call, int64_t now):
        """Looks for it in a blocking command that begins now."""
        cdef size_t at
        cdef bytes text
        self.timeout_ns = -1
        self.in_ms = True
        if call.row.flags & CMD_KEYLESS:                # WAIT, WAITAOF
            at = call.argc - 1
        elif call.row.store_scan == SCAN_XREAD:
            at = behind_block(call)
        else:
            self.in_ms = False
            at = <size_t> (_TIMEOUTS.get(call.row.name[:call.row.name_len], 0) % call.argc)
        if at == 0:
            return
        self.at = call.args[at].off
        self.length = call.args[at].len
        text = call.frame[self.at:self.at + min(self.length, <size_t> 64)]
        if (_INTEGER if self.in_ms else _SECONDS).fullmatch(text) is None:
            return
        seconds = float(text) / (1000.0 if self.in_ms else 1.0)
        if 0.0 <= seconds <= _LONGEST_S:
            self.timeout_ns = <int64_t> (<double> seconds * 1e9)
            self.until_ns = now + self.timeout_ns

    cdef bytes left(self, Request* r, int64_t now):
        """The command's bytes (r.own) with what is left, at least a millisecond; None: as they are."""
        cdef int64_t rest
        cdef bytes own, text
        if self.timeout_ns <= 0:
            return None
        rest = max(self.until_ns - now, MS)
        text = b"%d" % (rest // MS) if self.in_ms else b"%.3f" % (rest / 1e9)
        own = r.own[:r.len]
        return own[:own.rindex(b"$", 0, self.at)] + b"$%d\r\n%b" % (len(text), text) + own[self.at + self.length:]


cdef size_t behind_block(Call* call):
    """Which argument of an XREAD or XREADGROUP is BLOCK's; 0 = it cannot be told."""
    cdef size_t i = 1
    cdef bytes word
    while i + 1 < call.argc:
        word = call.frame[call.args[i].off:call.args[i].off + min(call.args[i].len, <size_t> 8)].upper()
        if word == b"BLOCK":
            return i + 1
        if word == b"STREAMS":
            return 0
        i += 3 if word == b"GROUP" else 2 if word == b"COUNT" else 1
    return 0
