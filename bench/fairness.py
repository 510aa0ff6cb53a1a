"""How fair, at what price: the policies on the paper's workloads in virtual time, and what they cost the engine.

Parts: `fairness_gate` (correctness first), `fairness_suites` (the tables), `fairness_plots` (docs/fairness/*.svg),
`fairness_cost` (time and memory), and with `--engine` `fairness_engine`: the same on a real engine."""

from __future__ import annotations

import argparse

from bench import fairness_cost, fairness_engine, fairness_plots, fairness_suites
from bench.fairness_gate import gate
from bench.record import Result, write


def main() -> None:
    """Gate, measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few of everything; writes nothing")
    parser.add_argument("--engine", action="store_true", help="on a real engine instead of the simulated one")
    arguments = parser.parse_args()
    gate()
    if arguments.engine:
        write(fairness_engine.results(arguments.quick), quick=arguments.quick)
    else:
        write(_simulated(arguments.quick), quick=arguments.quick, packages=("lorafleet",))


def _simulated(quick: bool) -> list[Result]:
    results = fairness_cost.costs(repeats=1 if quick else 7)
    results += fairness_suites.real_trace(range(1 if quick else 3)) + fairness_suites.weights()
    if quick:
        return results + fairness_suites.overloads(("overload",), ("fcfs", "vtc"))
    results += fairness_suites.overloads() + fairness_suites.others()
    return results + fairness_plots.plots()


if __name__ == "__main__":
    main()
