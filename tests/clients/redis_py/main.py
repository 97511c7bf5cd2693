"""redis-py, and valkey-py, which has the same interface: the synchronous client, then the asyncio one.

MODULE: redis or valkey; RESP: 2 or 3. Whether hiredis (libvalkey) parses is a matter of what is installed.
"""

from __future__ import annotations

import asyncio_client
import sync_client
from stages import Stages

stages = Stages()
sync_client.add_to(stages)
asyncio_client.add_to(stages)
stages.run(sync_client.MODULE)
