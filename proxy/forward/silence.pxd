"""Nodes that owe replies and say nothing; nodes that the cluster has given up."""
from libc.stdint cimport int64_t

from proxy.forward.node cimport Node
from proxy.forward.pipeline cimport BackendSettings

cdef bint watch(Node node, BackendSettings settings, int64_t now) except -1
cdef void doubt(Node node)
cdef void judge(Node node)
