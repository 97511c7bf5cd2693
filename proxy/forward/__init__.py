"""The data path: compiled, and without an await, a log line or a Python object per command.

What happens to one command:

    client fd --> Client.ready --> scan_command --> Call --> Dispatch --> Exchange.submit --> Router.choose --.
                                  (span, arguments)  (row, slot)  |                          (Target)         |
                                                                  '--> responder (proxy.serve)                v
                                                                       answers of our own            Pipeline.enqueue
                                                                          end of batch: one send(2) per backend
    client fd <-- Client.flush <-- ReplyQueue.deliver <-- Sink <-- Backend.reply <-- scan_reply <-- node fd
        end of batch: one send(2)  (in the client's order)  ^            |
        per client                  Gather: parts -> one ---'            '-- '-' first byte? --> Redirect:
                                                                              follow it, park it, or the client's

Three types carry every kind of command:

    Call    in: the command as read (row, frame, arguments), its keys and slot found once. Dispatch is a table from
            class to function; a function may answer "not now" and is asked again when what is under way is answered.
    Target  in between: a slot, any primary, one node, a lease; all primaries or all nodes are parts of a Gather.
    Sink    out: whoever takes the reply: a client's ReplyQueue, or a Gather that makes one reply of many parts.

Who owns what (-> owns, ~> borrows):

    Reactor -> peers (Client, Backend)           Request  a C struct with one owner at a time (see request.pyx):
    DataPath -> CommandTable, responder, clients    Pipeline.head .bnext ...   the order in which replies will come
    Client -> ReplyQueue, input, lease              Parking.first .bnext ...   waiting for a better moment
    Router -> Node -> Pool -> Backend               Gather.parts               parts of one command, in one block
    Backend -> window  bytes of every unanswered    ReplyQueue.head .cnext ... besides: the order they are due in
                       command, oldest first        ~> sink (NULL once its client has left)

Neither clients nor nodes are trusted: a node answers only what it was wholly sent, an error line leads only to nodes of
the published topology, and a client has a budget of time per batch, a limit on what is under way, and one on what is
held for it. What all clients hold together is counted (account) and bounded (memory).

Modules import one way: account < buffer < request < reactor < ports, counters < node, pipeline < backend < connections,
silence < router < pulse; router < scripts, parking < redirect < exchange < question, leases; reply_queue < gather;
topics < hub; router, reply_queue < tracking; split, call < datapath < queued, client_info < client < prepare, hold <
ask < answer < transaction < dispatch, memory < clients; question, timeout, replicated < leg < blocked < blocking <
dispatch < monitor; blocked < gate. Nothing here imports asyncio, logging, redis or prometheus_client; a loop is only
asked to call back.
"""
