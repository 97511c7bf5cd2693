"""redis-cli in the modes people use it in, as a program with standard input or in a terminal."""

from __future__ import annotations

import subprocess

from checks import HOST, PORT, check, equal, report

CLI = ["redis-cli", "-h", HOST, "-p", str(PORT)]


def cli(*words: str) -> str:
    return subprocess.run([*CLI, *words], capture_output=True, text=True, timeout=20, check=True).stdout


report("redis-cli", cli("--version").split()[1])
with check("strings"):
    for n in range(30):
        equal(cli("SET", f"cli:{n}", str(n)), "OK\n")
    equal(cli("MGET", *[f"cli:{n}" for n in range(30)]).split(), [str(n) for n in range(30)])
