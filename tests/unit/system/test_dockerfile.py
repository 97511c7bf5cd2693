"""The Dockerfile against what the program has: its health check, its signal, its user."""

from __future__ import annotations

import re
from pathlib import Path

DOCKERFILE = (Path(__file__).parents[3] / "Dockerfile").read_text()
INSTRUCTIONS = re.findall(r"^([A-Z]+) +(.*)$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)


def instruction(name: str) -> str:
    """Its words; the last one counts."""
    return [words for word, words in INSTRUCTIONS if word == name][-1]


def test_health_is_asked_without_a_shell() -> None:
    """And of the program itself, which knows /livez; it has to answer within the time."""
    assert instruction("HEALTHCHECK").endswith(' CMD ["redis-proxy", "healthcheck"]')
    assert "--timeout=3s" in instruction("HEALTHCHECK")


def test_process_1_is_the_program() -> None:
    assert instruction("ENTRYPOINT") == '["redis-proxy"]'
    assert instruction("CMD") == '["-c", "/etc/redis-proxy/proxy.yaml"]'
    assert instruction("STOPSIGNAL") == "SIGTERM"
    assert instruction("USER") == "7617"
