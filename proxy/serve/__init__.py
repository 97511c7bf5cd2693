"""Commands that are more than a forward: the answers the proxy gives itself.

    Client (data path) --> responder --+--> table --+--> local, client, cluster_view    this client, the virtual node
      a command, or        answer,     |            +--> client_all                     CLIENT over all workers
      malformed input      refuse ...  |            +--> all_shards, scripts, scan      what concerns many nodes
                                       |            +--> pubsub, monitor, tracking     what is pushed, and to whom
                                       |            +--> console                       PROXY, for administrators
                                     |            '--> info, command_info, acl_view   the servers' answers as one's
                                       '--> transaction    WATCH, and EXEC that is more than one server's

In: a command's arguments and the client it came from. Out: ready bytes, an Ask (what to ask of the servers), or a
Later (it comes from elsewhere).
context has what the answers need to know of the worker. Nothing here awaits, and no client's input raises.
"""
