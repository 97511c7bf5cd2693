# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What the proxy itself says: commands to nodes, answers to clients. Everything else is forwarded as it came.

put_head is for the data path (split commands); the Python functions are for proxy.serve and proxy.worker, and return
ready bytes. `proto` is 2 or 3: types that RESP2 lacks are written as Redis writes them there (networking.c, addReply*).

Invariant: simple strings and errors never carry a line break, so no text can forge a frame.
"""
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from proxy.resp import errors


cdef size_t put_head(char* out, char kind, int64_t n) noexcept nogil:
    cdef char digits[20]
    cdef size_t i = 20, at = 1
    cdef uint64_t v = <uint64_t>n
    out[0] = kind
    if n < 0:
        v = 0 - v
        out[1] = c'-'
        at = 2
    while True:
        i -= 1
        digits[i] = <char>(c'0' + v % 10)
        v //= 10
        if v == 0:
            break
    memcpy(out + at, digits + i, 20 - i)
    at += 20 - i
    out[at] = c'\r'
    out[at + 1] = c'\n'
    return at + 2


cdef bytes head(char kind, int64_t n):
    cdef char out[HEAD_MAX]
    cdef size_t used = put_head(out, kind, n)
    return out[:used]


cdef bytes raw(value):
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return (<str>value).encode()
    if isinstance(value, int) and not isinstance(value, bool):
        return b"%d" % value
    raise TypeError(f"bytes, str or int expected, got {type(value).__name__}")


def encode_command(*args):
    """A command as a multibulk frame."""
    cdef list out = [head(c'*', len(args))]
    cdef bytes value
    for arg in args:
        value = raw(arg)
        out.append(head(c'$', len(value)))
        out.append(value)
        out.append(b"\r\n")
    return b"".join(out)


def simple(text):
    """`+text`; line breaks become spaces."""
    return b"+" + raw(text).replace(b"\r", b" ").replace(b"\n", b" ") + b"\r\n"


def error(text):
    """`-text`, the text beginning with its code (`ERR ...`); line breaks become spaces."""
    return errors.line(text)


def integer(int64_t n):
    """`:n`."""
    return head(c':', n)


def bulk(value):
    """`$<bytes>`."""
    cdef bytes b = raw(value)
    return head(c'$', len(b)) + b + b"\r\n"


def null(int proto):
    """No value: `_`, in RESP2 the null bulk."""
    return b"_\r\n" if proto == 3 else b"$-1\r\n"


def null_array(int proto):
    """No array: `_`, in RESP2 `*-1`."""
    return b"_\r\n" if proto == 3 else b"*-1\r\n"


def array(items):
    """`*` and its elements, each encoded already."""
    return _aggregate(c'*', list(items))


def map_(pairs, int proto):
    """`%` of (encoded key, encoded value) pairs; in RESP2 a flat array."""
    cdef list flat = [part for pair in pairs for part in pair]
    return _aggregate(c'*', flat) if proto != 3 else head(c'%', len(flat) // 2) + b"".join(flat)


def set_(items, int proto):
    """`~` and its encoded elements; in RESP2 an array."""
    return _aggregate(c'~' if proto == 3 else c'*', list(items))


def push(items):
    """`>` and its encoded elements (RESP3 only)."""
    return _aggregate(c'>', list(items))


def boolean(bint value, int proto):
    """`#t` or `#f`; in RESP2 1 or 0."""
    if proto == 3:
        return b"#t\r\n" if value else b"#f\r\n"
    return b":1\r\n" if value else b":0\r\n"


def double(double value, int proto):
    """`,<number>`; in RESP2 a bulk. The shortest text that reads back as the same number."""
    cdef bytes text = repr(value).encode()
    if text.endswith(b".0"):
        text = text[:len(text) - 2]
    return b"," + text + b"\r\n" if proto == 3 else bulk(text)


def verbatim(text, str fmt, int proto):
    """`=` with its three-letter format (txt, mkd); in RESP2 a bulk."""
    cdef bytes b = raw(text)
    if proto != 3:
        return bulk(b)
    if len(fmt) != 3:
        raise ValueError("a verbatim string's format has three letters")
    return head(c'=', len(b) + 4) + fmt.encode() + b":" + b + b"\r\n"


cdef bytes _aggregate(char kind, list items):
    return head(kind, len(items)) + b"".join(items)
