"""Commands that are more than a forward: the answers the proxy gives itself.

    Client (data path) --> responder --+--> local          HELLO, AUTH, CLIENT, SELECT, READONLY, TIME ...
      a command, or        answer,     +--> info           INFO
      malformed input      refuse ...  +--> cluster_view   CLUSTER: one virtual node, the proxy
                                       '--> config_get     asks a server, takes the passwords out of its reply

In: a command's arguments and the client it came from. Out: ready bytes, or an Ask (what to ask of the servers first).
context has what the answers need to know of the worker. Nothing here awaits, and no client's input raises.
"""
