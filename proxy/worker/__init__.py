"""A worker process: main (process) > conversation (messages obeyed) > worker (one loop put together).

```
main process --channel--> conversation --> worker --> forward (clients, backends), serve (answers of our own)
                                             |-- connector, breaker: connects, shakes     report: what it saw, told
                                             |   hands; who may try a node that is down   rounds: looked at regularly
                                             |-- subscriptions > upstream > feed: what clients subscribe to, at nodes
                                             |-- monitors: who is shown what passes       inquiries: asked of all
                                             |-- node_pauses: PROXY PAUSE                 status: what it counts, told
                                             '-- drain: parts with clients
```
"""
