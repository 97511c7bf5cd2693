"""The main process: everything around the workers, from start to exit code.

    signals ----------> supervisor --+--> reload    a new configuration: first what can fail, then in force
    (TERM HUP USR1 USR2)             +--> upgrade   a successor with the listening sockets inherited, then a drain
                                     +--> status    what admin HTTP, /api/state and systemd are shown

    kernel's queue ---> acceptor ------> worker_pool ---(ipc: Start, Take, Configure, Drain)---> workers
                        (fewest clients)      |  <------(ipc: Started, Report, Status, Bye)-----
                                              '--> Report --> proxy.control --> Topology, Commands, NodeFacts

settings turns the configuration into what the workers are told. Imports proxy.control, proxy.admin and proxy.ipc.
"""
