"""A worker process: main (process) > conversation (messages obeyed) > worker (one loop put together).

```
main process --channel--> conversation --> worker --> forward (clients, backends), serve (answers of our own)
                                             |-- connector: connects and hands shakes     report: what it saw, told
                                             |-- subscriptions > upstream > feed: what clients subscribe to, at nodes
                                             |-- monitors: who is shown what passes       inquiries: asked of all
                                             '-- drain: parts with clients                status: what it counts, told
```
"""
