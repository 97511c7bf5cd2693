"""What touches the operating system, and nothing else: no configuration, no data path.

    start:    sd_notify, sockets (inherited, or opened), limits, cpus, process      -> the main process
    always:   log (a queue) -> log_writer (a thread) -> stderr or the log file      every process
    upgrade:  successor.spawn (sockets, environment) -> the next main process       READY=1 -> successor.ReadySocket

address is a value that all of these and the configuration share; cgroups reads what a container is granted.
Workers import address, log and process only, so these three import little.
"""
