"""The data path: compiled, and without an await, a log line or a Python object per command.

What happens to one command:

    client fd --> Client.ready --> scan_command --> dispatch --> Router.choose --> Backend.enqueue --.
                                    (span, keys)       |            (slot, policy)                   |  end of batch:
                                                       '--> Desk (proxy.serve): answers of our own   |  one send(2)
                                                                                                     v  per backend
    client fd <-- Ordered.flush <-- Ordered.deliver <------ scan_reply <-- Backend.ready <-------- node fd
        end of batch: one send(2)   (in client's order)        |
        per client                                             '-- '-' first byte? --> Retry: follow, park, give up

What hangs on what (-> owns, ~> borrows):

    Reactor -> peers (Client, Backend)          Request  a C struct in two queues, freed by the last to hold it:
    DataPath -> CommandTable, Desk, clients        Client.head .cnext ...   the order in which replies are due
    Router -> Node -> Backend                      Backend.head .bnext ...  the order in which replies will come
    Backend -> win   bytes of every unanswered     Retry.parked .bnext ...  waiting for a better moment (bytes in `own`)
                     command, oldest first         ~> client (NULL once it has left), ~> parent (a split's part)

Modules import one way: buffer < request < reactor < counters, ports < backend < router, split < retry < datapath <
order < client < clients. Nothing here imports asyncio, logging, redis or prometheus_client; a loop is only asked to
call back.
"""
