"""The words of a push that is one of messages: a few bulk strings, found without being copied."""

cdef struct Word:
    size_t off
    size_t len


cdef inline bint number_at(const char* p, size_t n, size_t* at, size_t* value) noexcept nogil:
    """A number and its line's end at `at`, which moves behind it."""
    cdef size_t i = at[0], v = 0
    while i < n and c"0" <= p[i] <= c"9":
        v = v * 10 + <size_t> (p[i] - c"0")
        i += 1
    if i == at[0] or i - at[0] > 15 or i + 2 > n or p[i] != c"\r" or p[i + 1] != c"\n":
        return False
    at[0] = i + 2
    value[0] = v
    return True


cdef inline int words_of(const char* p, size_t n, Word* words, size_t* count) noexcept nogil:
    """The bulk strings that a push begins with, at most four: how many; -1 = it is no push. count: its elements."""
    cdef size_t at = 1, size = 0
    cdef int i = 0
    if n < 4 or p[0] != c">" or not number_at(p, n, &at, count):
        return -1
    while i < 4 and <size_t> i < count[0] and at < n and p[at] == c"$":
        at += 1
        if not number_at(p, n, &at, &size) or size > n - at:
            break
        words[i].off = at
        words[i].len = size
        at += size + 2
        i += 1
    return i
