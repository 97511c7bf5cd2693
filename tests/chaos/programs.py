"""The bench's programs in processes of their own (links, probers): what they are told and what they answer is JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from proxy.embedded import die_with_parent
from tests.support.proxyd import ROOT


def started(module: str) -> subprocess.Popen[str]:
    """The module as a program; it ends with this process at the latest."""
    return subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=die_with_parent(),
        start_new_session=True,
    )


def tell(process: subprocess.Popen[str], value: Any) -> None:
    """One line to the program."""
    assert process.stdin is not None
    process.stdin.write(json.dumps(value) + "\n")
    process.stdin.flush()
