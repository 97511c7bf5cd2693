"""Redis Cluster as data, sans-IO: bytes and replies in, values out. Imports proxy.resp at most.

    key -------------------------------> slot --------------> 0..16383 ---> slot_table ---> shard     (data path)
    error line of a node --------------> redirection -------> MOVED, ASK, a refusal, or the client's  (data path)
    CLUSTER SHARDS, SLOTS, NODES, INFO -> topology_replies -> topology: Topology, accept(), diff()    (control)
    CONFIG GET proto-max-bulk-len ... -> node_limits -------> bytes a node takes of one client        (both)

slot, slot_table and redirection are compiled and cimported by forward. What is learnt from these values, and when, is
decided in proxy.control.
"""
