"""The descriptor limit, in a process that may spoil its own."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from proxy.embedded import die_with_parent
from proxy.system.limits import OTHER, share_limit

LIMITS = """
import resource, sys
from proxy.system import log
from proxy.system import limits as descriptors
soft, hard, max_clients = map(int, sys.argv[1:])
log.setup("info", "logfmt")
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
descriptors.raise_limit(max_clients)
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "clients", "raised", "missing"),
    [
        (64, 1024 + OTHER, 128, 128 + OTHER, 0),
        (512 + OTHER, 1024 + OTHER, 64, 512 + OTHER, 0),
        (64, 256 + OTHER, 256, 256 + OTHER, 0),
        (64, 256 + OTHER, 300, 256 + OTHER, 44),
    ],
)
def test_raised_as_far_as_it_may(soft: int, hard: int, clients: int, raised: int, missing: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITS, str(soft), str(hard), str(clients)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(raised), str(hard)]
    if missing:
        assert f"limit={raised} wanted={clients + OTHER} missing={missing}\n" in done.stderr
        assert "level=warning" in done.stderr
    else:
        assert done.stderr == ""


def test_shared_with_other_processes() -> None:
    mine = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (50, {mine[1]})); print(); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=die_with_parent()
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        share_limit([child.pid, 2**22 + 1])  # the second is nobody's: a warning, no more
        assert resource.prlimit(child.pid, resource.RLIMIT_NOFILE) == mine
        child.communicate()
