"""Every reply is that of its own command: 50 clients, random pipelines, random cuts, checked against a model."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest

from tests.support.model import Model, commands, wire
from tests.support.proxyd import ProxyDaemon

CLIENTS = 50
ROUNDS = 12


def pieces(data: bytes, rng: random.Random) -> Iterator[bytes]:
    """The bytes cut at random places: sometimes not at all, sometimes into tiny bits."""
    most = rng.choice((1 << 20, 5000, 500, 50))
    at = 0
    while at < len(data):
        size = rng.randint(1, most)
        yield data[at : at + size]
        at += size


def talk(proxy: ProxyDaemon, number: int, seed: int, wrong: list[str]) -> None:
    """One client from start to end; its first wrong reply goes into `wrong`."""
    rng = random.Random(seed * 1000 + number)
    protocol = rng.choice((2, 3))
    model = Model(protocol)
    source = commands(rng, f"{seed}-{number}")
    with proxy.raw(timeout_s=60) as raw:
        raw.command("HELLO", protocol)
        for turn in range(ROUNDS):
            batch = [next(source) for _ in range(rng.randint(1, 60))]
            raw.exchange(pieces(b"".join(wire(words, rng) for words in batch), rng))
            for n, words in enumerate(batch):
                expected, reply = model.apply(words), raw.frame()
                if reply != expected:
                    wrong.append(
                        f"client {number} RESP{protocol} turn {turn} command {n} {words!r:.200}: {reply!r:.200}"
                        f" instead of {expected!r:.200}"
                    )
                    return


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_random_pipelines(seed: int, proxy: ProxyDaemon) -> None:
    wrong: list[str] = []

    def run(number: int) -> None:
        try:
            talk(proxy, number, seed, wrong)
        except Exception as error:
            wrong.append(f"client {number}: {error!r}")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_one_client_of_many_colours_alone(proxy: ProxyDaemon) -> None:
    """The same, for a failure that is easy to read."""
    for seed in range(100, 110):
        wrong: list[str] = []
        talk(proxy, 0, seed, wrong)
        assert wrong == []
