"""The control plane: what the proxy has to know of the cluster, learnt once, in the main process, for all workers.

    signs (moved, lost, uncovered) --> topology_refresh --asks one node--> Topology --> publish --.
    a node that is silent -----------> suspects --------PING to primaries--> who may hang: ask more often (refresh_pace)
    reads a replica refused ---------> node_health -----probes replicas--> fit or not ------------+--> ipc messages,
    every five minutes --------------> command_table ---COMMAND, limits--> rows, limits ----------'    to every worker

control_plane puts these together and keeps the newest values for workers that start later; settings has their options;
node_client is the connection all of them use; tasks begins again what failed. No fault here reaches a client: the
workers go on with what they were told last. asyncio; redis-py is imported here only (and by the demo).
"""
