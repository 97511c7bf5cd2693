"""Messages of channels, from the nodes' pushes to the clients that are subscribed."""
from libc.stdint cimport int64_t, uint64_t

from proxy.forward.backend cimport Backend
from proxy.forward.client cimport Client
from proxy.forward.counters cimport CounterBlock
from proxy.forward.ports cimport PushPort, Sink
from proxy.forward.reactor cimport Peer, Reactor
from proxy.forward.router cimport Router
from proxy.forward.topics cimport Topic, Wide

cdef enum Kind:
    CHANNEL = 0
    PATTERN = 1
    SHARD = 2

cdef enum Duty:                 # of a connection to a node: see the module
    DUTY_MAIN = 1
    DUTY_NODE = 2

cdef class Order(Sink):
    cdef object done
    cdef object raised

cdef class Turns(Peer):
    cdef Hub hub

cdef class Hub(PushPort):
    cdef Router router
    cdef Reactor reactor
    cdef CounterBlock* counts
    cdef set clients                        # the data path's
    cdef readonly tuple topics              # dicts by Kind: name -> Topic
    cdef readonly Wide wide                 # patterns that fit names of events and others
    cdef readonly list subscriptions        # of clients, by Kind
    cdef public int64_t hard_limit          # bytes that a subscriber may not have taken
    cdef public int64_t soft_limit          # ... for longer than soft_ns
    cdef public int64_t soft_ns
    cdef public int64_t most_waiting        # bytes of messages from which on nodes are not read
    cdef readonly int64_t waiting           # bytes of messages that wait
    cdef readonly set sources               # Backends
    cdef dict slow                          # Client -> since when it has been above the soft limit, ns
    cdef object queue                       # of Messages
    cdef Turns turns
    cdef readonly bint deaf                 # the connections are not read: too much waits
    cdef uint64_t number                    # messages so far
    cdef int budget
    cdef uint64_t budget_in                 # the batch that it is for
    cdef Topic given                        # whose messages are being given out ...
    cdef bytes push
    cdef bytes array
    cdef uint64_t first                     # ... the number of its first message
    cdef uint64_t changes                   # ... Topic.changes when its members were listed
    cdef list members
    cdef Py_ssize_t at                      # ... and who is next
    cdef int64_t bound                      # ... its bytes, as counted in `waiting`
    cdef bint message(self, Backend source, const char* p, size_t n)
    cdef void tapped(self, bytes channel, bytes tail)
    cdef void publish(self, Topic topic, const char* p, size_t n)
    cdef void renew_budget(self) noexcept
    cdef void give(self, Client client, const char* push, const char* array, size_t n) noexcept
    cdef void weigh(self, Client client) noexcept
    cdef bint next_wave(self)
    cdef void put(self, Topic topic, uint64_t number, bytes push, bytes array)
    cdef void go_on(self) noexcept
    cdef void listen(self, bint wanted) noexcept
