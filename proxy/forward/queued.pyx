# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What a client has queued since MULTI: the commands for a server as one frame, and those that the proxy answers."""
cimport cython

from libc.stdint cimport int64_t

from proxy.forward.buffer cimport buffer_append, buffer_len, buffer_release

cdef const char* MULTI = b"*1\r\n$5\r\nMULTI\r\n"
cdef enum:
    MULTI_LEN = 15
    WORD = 100              # bytes that a Python object takes besides what it holds
    LOCAL_MOST = 1000       # commands that the proxy answers itself: all of them are answered at once, at EXEC


@cython.final
cdef class Queued:
    """One client's; made by MULTI, gone with EXEC, DISCARD, RESET or the client."""

    def __cinit__(self):
        self.slot = -1
        self.reads = True
        self.local = []

    def __dealloc__(self):
        self.frames.counted = NULL          # the reactor may be gone
        buffer_release(&self.frames)

    cdef void count(self, int64_t* all) noexcept:
        """What it holds is counted there, until drop()."""
        self.all = self.frames.counted = all

    cdef bint add(self, const char* frame, size_t n) noexcept:
        """Queues a command for a server; false when there is no memory."""
        if self.sent == 0 and not buffer_append(&self.frames, MULTI, MULTI_LEN):
            return False
        if not buffer_append(&self.frames, frame, n):
            return False
        self.n += 1
        self.sent += 1
        return True

    cdef bint add_local(self, list words, size_t most):
        """Queues a command that the proxy answers itself; false when there are too many, or all is then longer than
        `most`, and spoiled."""
        cdef size_t size = WORD
        for word in words:
            size += WORD + <size_t> len(word)
        if not self.spoiled:
            if len(self.local) >= LOCAL_MOST or buffer_len(&self.frames) + self.texts + size > most:
                self.spoil()
                return False
            self.texts += size
            self.all[0] += size
            self.local.append((self.n, words))
        self.n += 1
        return True

    cdef void spoil(self) noexcept:
        """Nothing of it will be executed: nothing is kept."""
        self.spoiled = True
        self.drop()

    cdef void drop(self) noexcept:
        """Gives back what is queued; how many there were stays."""
        buffer_release(&self.frames)
        self.all[0] -= <ssize_t> self.texts
        self.texts = 0
        self.sent = 0
        self.local = []
