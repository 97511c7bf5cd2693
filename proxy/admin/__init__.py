"""What is shown of the proxy over HTTP, on a port of its own; the main process runs it, a worker never imports it.

```
counters of the workers (shared memory) ---+
ipc.messages.Status of each worker --------+--> merge --> Snapshot --> metrics --> exposition --> GET /metrics
OwnValues (what the main process knows) ---+                           processes ---^
OwnValues, silence of each worker ------------> probes ------------------------------> GET /readyz, /livez
a callback of the main process ------------------------------------------------------> GET /api/state
```
http answers, listener owns the sockets and the connections that came by them, snapshot says what the values look like.
"""
