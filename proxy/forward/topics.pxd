"""What clients are subscribed to, and the patterns that events of the keyspace are matched with."""
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp

from proxy.resp.glob cimport Glob

cdef inline bint is_event(const char* name, size_t n) noexcept nogil:
    return n >= 11 and (memcmp(name, b"__keyspace@", 11) == 0 or memcmp(name, b"__keyevent@", 11) == 0)


cdef inline bint is_confirmation(const char* word, size_t n) noexcept nogil:
    """[p|s][un]subscribe: servers to come may push what is none of the hub's business."""
    return n >= 9 and memcmp(word + n - 9, b"subscribe", 9) == 0

cdef class Topic:
    cdef readonly int kind
    cdef readonly bytes name
    cdef readonly dict members              # Client -> number of the last message before it came
    cdef public int waiting                 # SUBSCRIBEs under way that name it
    cdef public bint events                 # only names of keyspace events can fit
    cdef Glob glob                          # of a wide pattern
    cdef public object source               # of a shard channel: the connection that it is subscribed on
    cdef uint64_t newest                    # the largest of members' numbers
    cdef uint64_t changes                   # members that have come or gone

cdef class Subscriber:
    cdef readonly tuple topics              # dicts by Kind: name -> Topic
    cdef readonly int wide                  # patterns among them that are wide

cdef class Message:
    cdef Topic topic                        # None: an event, for the wide patterns that fit it
    cdef bytes push                         # as RESP3 has it; of an event: its payload, as it ends the push
    cdef bytes channel                      # ... of an event
    cdef int64_t steps                      # ... that it is expected to take
    cdef uint64_t number

cdef class Wide:
    cdef readonly dict topics               # name -> Topic
    cdef readonly int64_t cut               # events that not all patterns were compared with
    cdef list listed                        # of `topics`; None: they have changed
    cdef int64_t expected                   # steps of the events that wait
    cdef int64_t heavy                      # what events have taken of late
    cdef Message event                      # that is being matched, None: none is
    cdef list left                          # ... with these
    cdef Py_ssize_t at                      # ... from here on
    cdef int64_t steps                      # ... taken
    cdef bint whole                         # ... and so far with all of them
    cdef void add(self, Topic topic)
    cdef void drop(self, Topic topic)
    cdef bint wait(self, Message event) noexcept
    cdef void begin(self, Message event)
    cdef Topic next(self, int* budget)
    cdef bytes frame_of(self, Message event, Topic topic)
