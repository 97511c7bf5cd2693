# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What clients are subscribed to, and the patterns that events of the keyspace are matched with.

Why: a node applies patterns itself, but those that fit events and other names (`*`) are not subscribed where the events
come from (proxy.forward.hub). So each event is compared with each of them here, for whoever writes a key and
whatever patterns clients have: in the hub's turns, a STEPS_UNIT for a unit, and within bounds.

Invariants: a comparison takes MATCH_MOST steps at most, an event EVENT_MOST with all patterns, and what waits
BACKLOG_MOST, as far as can be told before. What is above is not compared, which is counted (`cut`).
"""
cimport cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

cdef enum:
    UNIT_SHIFT = 10             # 2^10 steps are a unit of the hub's turn, some 2 us
    PATTERN_STEPS = 96          # what a pattern costs besides the steps of the match
    MATCH_MOST = 1 << 18
    EVENT_MOST = 1 << 21
    BACKLOG_MOST = 1 << 25


@cython.final
cdef class Topic:
    """A channel, pattern or shard channel that clients are subscribed to, or are about to be."""

    def __cinit__(self, int kind, bytes name not None):
        self.kind = kind
        self.name = name
        self.members = {}

    @property
    def wide(self):
        """A pattern that fits events and other names."""
        return self.glob is not None


@cython.final
cdef class Subscriber:
    """What one client is subscribed to."""

    def __cinit__(self):
        self.topics = ({}, {}, {})

    @property
    def counts(self):
        """(channels, patterns, shard channels)."""
        return len(self.topics[0]), len(self.topics[1]), len(self.topics[2])


@cython.final
cdef class Message:
    """One that waits to be given out."""


@cython.final
cdef class Wide:
    """The wide patterns, and the event that is being matched with them."""

    def __cinit__(self):
        self.topics = {}

    cdef void add(self, Topic topic):
        topic.glob = Glob(topic.name)
        self.topics[topic.name] = topic
        self.listed = None

    cdef void drop(self, Topic topic):
        if self.topics.get(topic.name) is topic:
            del self.topics[topic.name]
            self.listed = None

    cdef bint wait(self, Message event) noexcept:
        """Whether there is room for one more that waits."""
        cdef int64_t steps = len(self.topics) * <int64_t> (PATTERN_STEPS + 32)
        event.steps = min(max(steps, self.heavy), <int64_t> EVENT_MOST)
        if self.expected > BACKLOG_MOST:
            self.cut += 1
            return False
        self.expected += event.steps
        return True

    cdef void begin(self, Message event):
        """Its turn has come."""
        if self.listed is None:
            self.listed = list(self.topics.values())
        self.expected -= event.steps
        self.event = event
        self.left = self.listed
        self.at = 0
        self.steps = 0
        self.whole = True

    cdef Topic next(self, int* budget):
        """The next pattern that fits; None: the budget is over, or (event is None) all have been compared."""
        cdef Topic topic, found = None
        cdef Py_ssize_t count = len(self.left)
        cdef const char* channel = PyBytes_AS_STRING(self.event.channel)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(self.event.channel)
        cdef int64_t fits, before = self.steps, most = self.steps + (<int64_t> max(budget[0], 0) << UNIT_SHIFT)
        while found is None and self.at < count and self.steps < most:
            topic = <Topic> self.left[self.at]
            self.at += 1
            self.steps += PATTERN_STEPS
            if topic.members:
                topic.glob.taken = 0
                fits = topic.glob.match(channel, size, MATCH_MOST)
                self.steps += topic.glob.taken
                if fits > 0:
                    found = topic
                elif fits < 0:
                    self.whole = False
            if self.steps >= EVENT_MOST and self.at < count:
                self.whole = False
                self.at = count
        budget[0] -= 1 + <int> ((self.steps - before) >> UNIT_SHIFT)
        if found is None and self.at >= count:
            if not self.whole:
                self.cut += 1
            self.heavy = max(self.steps, self.heavy - (self.heavy >> 4))
            self.event = None
            self.left = None
        return found

    cdef bytes frame_of(self, Message event, Topic topic):
        """The event as a message of that pattern."""
        cdef bytes channel = event.channel, tail = event.push
        return b">4\r\n$8\r\npmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b" % (
            len(topic.name), topic.name, len(channel), channel, len(tail) - 2, tail)
