"""Between the main process and its workers: one socketpair each, and memory for counters that both sides map.

```
supervisor, control  --settings, messages--> channel (msgpack frames, SCM_RIGHTS) --> worker.conversation
                     <------ Started, Report, Status, Applied, Bye ------------------
```
Nothing here knows what either side does with a message. Both sides are of the same version (EXIT_VERSION).
"""

from typing import Final

EXIT_VERSION: Final = 79  # exit code of a worker whose installation is not the main process's version
