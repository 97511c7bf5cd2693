"""A server of the cluster as the data path knows it."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from proxy.forward.counters cimport Histogram
from proxy.forward.ports cimport Owner
from proxy.forward.request cimport Request

cdef enum ReadPolicy:
    READS_PRIMARY = 0
    READS_PREFER_PRIMARY = 1
    READS_REPLICA = 2
    READS_PREFER_REPLICA = 3
    READS_ANY = 4

cdef class Node

cdef class Pool:
    cdef Node node
    cdef readonly int proto
    cdef readonly int db
    cdef list backends                      # Backends, made on first use
    cdef int64_t down_since_ns              # 0 = not known to be down
    cdef Owner owner                        # the client whose own it is; None = all share it
    cdef int64_t begun_ns                   # of an owner's: when its connection was last made
    cdef int64_t not_before_ns              # ... and before when no other one is

cdef class Node:
    cdef readonly object address            # proxy.cluster.topology.Address
    cdef readonly str label                 # str(address)
    cdef readonly uint32_t number           # never given twice in a process
    cdef public bint replica
    cdef public bint paused                 # PROXY PAUSE holds what is for it: see proxy.forward.gate
    cdef public bint usable                 # a replica fit for reads (proxy.control.node_health)
    cdef public bint stale                  # a replica that is not, but only because it has lost touch with its primary
    cdef readonly bint failing              # the cluster has voted it failed
    cdef readonly bint silent               # it owes replies, and nothing comes: see proxy.forward.silence
    cdef bint deposed                       # it owned slots and owns none any more
    cdef int64_t heard_ns                   # when bytes last came from it, on any connection
    cdef int64_t told_ns                    # when control was last told that it is silent, or down
    cdef readonly bint gone                 # no longer in the topology
    cdef uint32_t published                 # number of the topology it was last in
    cdef bint wanted_replica                # its role there
    cdef readonly bint owner                # stands in Router.primaries: it owns slots
    cdef int64_t owner_ns                   # since when; 0 = it does not
    cdef int shard                          # of which it is the primary: index into Router.shards; -1 = none
    cdef public uint64_t connect_failures
    cdef Histogram duration
    cdef Pool resp2
    cdef Pool resp3
    cdef dict numbered                      # pools of databases other than 0: (proto, db) -> Pool
    cdef dict owned                         # pools of clients' own: number (from OWN_FIRST on) -> Pool
    cdef list leases                        # Backends each of which one client owns, or may own next
    cdef list retired                       # Backends of a former role, draining
    cdef Pool pool(self, int proto, int db)
    cdef int64_t down_since(self)
    cdef list pools(self)
    cdef list shared_pools(self)
    cdef Pool own_pool(self, Owner owner, int number)
    cdef void heard(self) noexcept
    cdef bint shunned(self, Request* r)

cdef class Shard:
    cdef readonly Node primary              # may be None
    cdef readonly list replicas
    cdef Node pick(self, Request* r)
    cdef Node other_than_replicas(self, Request* r)
    cdef Node paused_replica(self)
    cdef Node least(self, Request* r, bint with_primary, bint stale)
