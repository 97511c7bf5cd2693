# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What proxy.serve reads of a client and changes: where it came from, what it says of itself, how it is doing.

Used for commands that the proxy answers itself (AUTH, HELLO, SELECT, CLIENT), never on the way of a forwarded one. The
texts are as long as the client likes: they are counted as memory held for it, while it is connected.
"""
import time

from proxy.forward.buffer cimport buffer_len
from proxy.forward.reply_queue cimport MUTE_NEXT, MUTE_OFF

from proxy.forward.router import READ_POLICIES


cdef class ClientInfo(Outlet):
    """Never made by itself: Client is the one subclass."""

    def __cinit__(self):
        self.fd = -1
        self.user = "default"
        self.own_name = self.own_lib_name = self.own_lib_ver = b""
        self.created_s = time.time()

    @property
    def last_active_s(self):
        """Unix time of the last input or output."""
        self.reactor.tick()
        return time.time() - (self.reactor.now - self.active_ns) / 1e9

    @property
    def last_command(self):
        """Name of the last command, "other" when the metrics have no name for it."""
        cdef dict names = self.path.metric_names
        if len(names) != len(self.path.counters.metrics):
            names = self.path.metric_names = {index: name for name, index in self.path.counters.metrics.items()}
        return names.get(self.last_metric, "other")

    @property
    def pending(self):
        """Commands under way."""
        return self.replies.inflight

    @property
    def output_bytes(self):
        """Reply bytes not taken yet."""
        return self.replies.held + buffer_len(&self.replies.out)

    @property
    def query_bytes(self):
        """Input bytes that are not carried out yet."""
        return buffer_len(&self.rest)

    @property
    def reads(self):
        """Name of the read policy in force."""
        return READ_POLICIES[self.policy]

    @property
    def listener_reads(self):
        """... and of the one it began with."""
        return READ_POLICIES[self.settings.reads]

    def set_reads(self, name):
        """Changes the read policy; raises ValueError for an unknown name."""
        self.policy = READ_POLICIES.index(name)

    def set_proto(self, int proto):
        """Commands from now on go to backends of this protocol, 2 or 3. Before it, what was under way is answered."""
        self.proto = proto

    def set_reply(self, str mode):
        """CLIENT REPLY: "on", "off" or "skip", which is for the command after the present one."""
        if mode == "on":
            self.replies.muted = 0
        elif mode == "off":
            self.replies.muted |= MUTE_OFF
        elif mode != "skip":
            raise ValueError(mode)
        elif not self.replies.muted & MUTE_OFF:
            self.replies.muted |= MUTE_NEXT

    @property
    def name(self):
        return self.own_name

    @name.setter
    def name(self, bytes text not None):
        self.own_name = text
        self.count_texts()

    @property
    def lib_name(self):
        return self.own_lib_name

    @lib_name.setter
    def lib_name(self, bytes text not None):
        self.own_lib_name = text
        self.count_texts()

    @property
    def lib_ver(self):
        return self.own_lib_ver

    @lib_ver.setter
    def lib_ver(self, bytes text not None):
        self.own_lib_ver = text
        self.count_texts()

    cdef void count_texts(self) noexcept:
        """They have changed, or the client is closed."""
        cdef size_t now = len(self.own_name) + len(self.own_lib_name) + len(self.own_lib_ver) if self.fd >= 0 else 0
        self.reactor.memory += <ssize_t> now - <ssize_t> self.texts
        self.texts = now
