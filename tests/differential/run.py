"""Many sequences, until they are played or the time is over.

    python -m tests.differential.run [--sequences 3000] [--seed N] [--server valkey] [--workers 2] [--reads ...]
    python -m tests.differential.run --seed 7 --number 41          # this one, shown whole

Prints the seed, and for each kind of difference the smallest sequence that shows it. Ends with 1 when there is any.
Called by: `make differential`.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from tests.differential.play import Difference, Fleet, Pair
from tests.differential.sequences import Maker
from tests.support.cluster import servers

WAYS = [(1, "primary"), (2, "primary"), (2, "prefer_replica")]


def maker_for(pair: Pair) -> Maker:
    """Of all commands the servers have, but for what is excluded."""
    return Maker(pair.commands, pair.dumps)


def compare(pair: Pair, seed: int, numbers: range, give_up: float = float("inf")) -> tuple[int, list[Difference]]:
    """Plays sequences until time.monotonic() is give_up: how many, and one difference of each kind, made small."""
    maker = maker_for(pair)
    print(f"seed {seed}: {len(maker.commands)} commands", flush=True)
    found: dict[tuple[bytes, bytes, bytes], Difference] = {}
    played = 0
    for number in numbers:
        if time.monotonic() > give_up:
            break
        played += 1
        difference = pair.first_difference(maker.make(seed, number))
        if difference is not None and difference.kind not in found:
            found[difference.kind] = pair.smallest(difference)
            print(found[difference.kind], flush=True)
    return played, list(found.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=3000, help="for each kind of server and way")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--number", type=int, help="only this sequence of the seed, shown whole")
    parser.add_argument("--server", choices=sorted(servers()))
    parser.add_argument("--workers", type=int)
    parser.add_argument("--reads", choices=["primary", "prefer_replica"])
    options = parser.parse_args()
    ways = [(options.workers or 1, options.reads or "primary")] if options.workers or options.reads else WAYS
    failed = False
    for kind in [options.server] if options.server else sorted(servers()):
        for workers, reads in ways:
            with Fleet(servers()[kind], workers, reads) as pair:
                print(f"--- {kind}, {workers} worker(s), reads: {reads}", flush=True)
                first = options.number or 0
                numbers = range(first, first + (options.sequences if options.number is None else 1))
                started = time.monotonic()
                if options.number is not None:
                    print("\n".join(map(str, maker_for(pair).make(options.seed, options.number).steps)))
                played, found = compare(pair, options.seed, numbers)
                took = time.monotonic() - started
                print(f"{played} sequences in {took:.0f} s, {len(found)} kinds of differences", flush=True)
                failed = failed or bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
