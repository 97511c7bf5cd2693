"""What the workers are told of the configuration: what is the whole proxy's is shared out."""

from __future__ import annotations

from proxy.config.models import from_seeds
from proxy.supervisor.settings import Shares, worker_settings


def test_what_is_the_whole_proxy_s_is_shared_out() -> None:
    settings = from_seeds(["127.0.0.1:7001"])
    told = worker_settings(settings, Shares(workers=3, max_clients=900, per_worker=300, max_memory=3000))
    assert told.clients.max_clients == 900
    assert told.clients.max_memory == 1000
    assert told.clients.max_left == 75
    assert told.requests.max_held == 16667  # never less than its part, and never nothing
    assert told.requests.max_held_bytes == (64 << 20) // 3 + 1
    assert told.requests.timeout == settings.requests.timeout
