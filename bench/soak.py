"""A hundred thousand requests, and nothing is left of them.

`python -m bench.soak [--quick] [--seed N]`: random load, reload of another revision, pin, unload and abort, on the
scheduler and the pool alone, and on the engine with a tiny model's tensors. The pool's invariants are checked after
every step; at the end every page is free, or holds an adapter or a prefix that nobody uses.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench.record import Result, write
from bench.soak_targets import CoreTarget, EngineTarget
from bench.soak_traffic import Life, Target, live

REQUESTS, QUICK = 100_000, 2_000
ADAPTERS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} requests each, nothing written")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    requests = QUICK if arguments.quick else REQUESTS
    results = soak("scheduler and pool", CoreTarget(), requests, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        engine = EngineTarget(Path(folder), ADAPTERS)
        try:
            results += soak("engine", engine, requests, arguments.seed)
        finally:
            engine.close()
    write(results, quick=arguments.quick)
    if not all(result.met in (None, True) for result in results):
        sys.exit(1)


def soak(case: str, target: Target, requests: int, seed: int) -> list[Result]:
    """One life, and what is left of it."""
    begun = time.perf_counter()
    life = live(target, requests, seed, adapters=ADAPTERS)
    seconds = time.perf_counter() - begun
    if life.broken is not None:
        print(f"{case}, seed {seed}, step {life.broken[0]}:", *life.broken[1][:20], sep="\n  ", file=sys.stderr)
    return [
        Result("soak", case, "violations and leaks", len(life.broken[1]) if life.broken else 0, "", goal="0",
               met=life.broken is None),
        *(Result("soak", case, metric, value, unit) for metric, value, unit in counts(life, seconds)),
        *(Result("soak", case, metric, value, "") for metric, value in target.hardships().items()),
    ]  # fmt: skip


def counts(life: Life, seconds: float) -> list[tuple[str, float, str]]:
    return [
        ("requests", life.asked, ""), ("ended by themselves", life.ended, ""), ("given up", life.aborted, ""),
        ("steps, each audited", life.steps, ""), ("loads and reloads", life.loads, ""), ("unloads", life.unloads, ""),
        ("time", seconds, "s"),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
