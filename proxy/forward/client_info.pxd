"""What proxy.serve reads of a client and changes."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t

from proxy.forward.backend cimport Backend
from proxy.forward.buffer cimport Buffer
from proxy.forward.datapath cimport ClientSettings, DataPath
from proxy.forward.ports cimport Outlet, Wait
from proxy.forward.queued cimport Queued
from proxy.forward.reply_queue cimport ReplyQueue
from proxy.forward.tracking cimport Tracking

cdef class ClientInfo(Outlet):
    cdef DataPath path
    cdef readonly ClientSettings settings
    cdef ReplyQueue replies
    cdef readonly uint64_t id               # given by the main process: unique in the proxy
    cdef public str address
    cdef public str local_address
    cdef public str user
    cdef int own_db                         # SELECT
    cdef uint16_t route                     # which connections its commands go over: Request.db
    cdef uint16_t caching                   # REQ_CACHING: it has said CLIENT CACHING, for the next command
    cdef readonly Tracking tracking         # what it wants tracked; None = nothing
    cdef public bint authenticated
    cdef public bint no_evict               # as it said itself, without an effect: see proxy.serve.client
    cdef public bint no_touch
    cdef public bint monitoring             # MONITOR: see proxy.forward.monitor
    cdef public bint redirects              # CLIENT CAPA REDIRECT
    cdef double created_s                   # time.monotonic(): the wall clock may step
    cdef readonly uint64_t total_commands
    cdef readonly uint8_t proto
    cdef uint8_t policy                     # where its reads go
    cdef uint8_t wanted_policy              # ... but for its tracking: a replica tells later than a primary answers
    cdef int last_metric
    cdef int64_t active_ns                  # when bytes last came from it or were taken by it
    cdef Buffer rest                        # input that is not carried out yet
    cdef bytes own_name
    cdef bytes own_lib_name
    cdef bytes own_lib_ver
    cdef size_t texts                       # bytes of these three, as far as they are counted in Reactor.memory
    cdef public Backend lease               # a connection of its own, for what it watches; or None
    cdef public int watching                # the slot of the keys it watches; -1 = none
    cdef public bint asking                 # ... on a node that is importing the slot
    cdef Wait wait                          # its blocking command that is under way; or None
    cdef Queued transaction                 # since MULTI; None outside of a transaction
    cdef readonly bint killed               # nothing is read of it any more, and it is closed very soon
    cdef readonly object subscriber         # proxy.forward.hub.Subscriber; None while it is subscribed to nothing
    cdef size_t subscribed                  # bytes that its subscriptions take: counted in Reactor.memory
    cdef void count_texts(self) noexcept
    cdef bint own_connections(self)
    cdef void connect_anew(self)
    cdef void untrack(self) noexcept
    cdef void begin_multi(self) noexcept
    cdef void end_multi(self) noexcept
    cdef void carried_out(self) noexcept
    cdef void leave(self) noexcept
    cdef size_t queued_bytes(self) noexcept
    cdef void give_lease_back(self) noexcept
