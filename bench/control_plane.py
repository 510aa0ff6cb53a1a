"""The operator on a real API server with thousands of objects: how soon one more adapter serves, how long a cold start
takes, what an idle fleet costs, what is written.

Real: etcd, kube-apiserver, controllers, scheduler, the operator and a gateway. Fake: nodes and pods (kwok), and the
runtimes, which keep the contract but have no model (tests/cluster/scale). All of it shares this machine's cores.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console

from bench.record import Result, write
from lorafleet_operator.kube.documents import unpacked
from tests.cluster.fleet import OperatorProcess
from tests.cluster.lab import SYSTEM
from tests.cluster.scale import kit
from tests.cluster.scale.kit import WRITES, Calls, ScaleFleet

BENCH = "control_plane"
SERVABLE_SECONDS, COLD_SECONDS, FAILOVER_SECONDS = 2.0, 300.0, 15.0
MOST_WRITES, STATUS_KIB = 3.0, 64.0
RESIDENT_MB, IDLE_CORES = 350.0, 0.2
BASE_MODELS, REPLICAS = 20, 10
console = Console()


def main() -> None:
    """Enter a namespace without a network, then run both fleets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything; writes nothing")
    parser.add_argument("--only", choices=("warm", "cold"), help="one of the two fleets")
    arguments = parser.parse_args()
    if not kit.inside():
        sys.exit(kit.enter(sys.executable, "-m", f"bench.{BENCH}", *sys.argv[1:]).returncode)
    scale = 0.1 if arguments.quick else 1.0
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "cold":
            results += _warm(Path(folder) / "warm", int(1000 * scale), int(100 * scale), int(50 * scale))
        if arguments.only != "warm":
            results += _cold(Path(folder) / "cold", int(10_000 * scale), int(500 * scale), 60.0 if scale == 1 else 20.0)
    write(results, quick=arguments.quick, packages=("kopf", "kubernetes", "httpx"))


def _warm(folder: Path, adapters: int, more: int, tenants: int) -> list[Result]:
    """One more adapter, again and again, in a fleet that has `adapters`."""
    folder.mkdir()
    with kit.running(folder, base_models=BASE_MODELS, replicas=REPLICAS, tenants=tenants) as fleet:
        _start(fleet, adapters, COLD_SECONDS)
        before = fleet.settle()
        taken = _each_served(fleet, adapters, more)
        fleet.settle()
        writes = fleet.writes_since(before)
        case = f"one more adapter beside {adapters}"
        per_change = _per_change(writes, more)
        return [
            _time(case, "servable, median", statistics.median(taken), more),
            _time(case, "servable, p99", _quantile(taken, 0.99), more, SERVABLE_SECONDS),
            *(Result(BENCH, case, f"{name} per change", value, "writes") for name, value in per_change.items()),
            _goal(case, "writes of the adapter itself, per change", per_change["LoRAAdapter"], "writes", MOST_WRITES),
        ]


def _cold(folder: Path, adapters: int, tenants: int, idle_seconds: float) -> list[Result]:
    """A whole fleet that no operator has ever seen; then at rest; then with things going wrong."""
    folder.mkdir()
    with kit.running(folder, base_models=BASE_MODELS, replicas=REPLICAS, tenants=tenants) as fleet:
        seconds = _start(fleet, adapters, 2 * COLD_SECONDS)
        fleet.settle()
        case = f"{adapters} adapters, {BASE_MODELS * REPLICAS} replicas, {tenants} tenants"
        calls = fleet.api_calls()
        results = [
            _goal(case, "cold start to all Ready", seconds, "s", COLD_SECONDS),
            _goal(case, "writes of each adapter", _of(calls, "LoRAAdapter") / adapters, "writes", MOST_WRITES),
        ]
        results += _idle(fleet, case, idle_seconds)
        results += _sizes(fleet, case)
        results += _one_more(fleet, case, adapters)
        results += _pod_restart(fleet, case)
        results += _failover(fleet, case, adapters + 100)
        return results


def _start(fleet: ScaleFleet, adapters: int, most: float) -> float:
    """Declare everything, then start the operator: seconds from there until all adapters are Ready, and answer."""
    fleet.declare()
    fleet.create(fleet.adapter(number) for number in range(adapters))
    fleet.operator.start()
    fleet.gateway.start()
    seconds = fleet.until_ready(adapters, most)
    console.print(f"{adapters} adapters Ready after {seconds:.1f} s")
    _gate(fleet, adapters)
    return seconds


def _each_served(fleet: ScaleFleet, first: int, count: int) -> list[float]:
    """Seconds from an adapter's creation to its first answer, one adapter after another."""
    taken = []
    for number in range(first, first + count):
        fleet.create([fleet.adapter(number)])
        taken.append(fleet.until_served(number))
    return taken


def _idle(fleet: ScaleFleet, case: str, seconds: float) -> list[Result]:
    process = _process(fleet.operator)
    before, cpu = fleet.api_calls(), sum(process.cpu_times()[:2])
    time.sleep(seconds)
    used = (sum(process.cpu_times()[:2]) - cpu) / seconds
    writes = fleet.writes_since(before)
    return [
        _goal(case, "idle operator", used, "cores", IDLE_CORES),
        _goal(case, "operator resident", process.memory_info().rss / 1e6, "MB", RESIDENT_MB),
        _goal(case, "writes while nothing changes, but the Lease", sum(writes.values()), "writes", 0.0),
    ]


def _sizes(fleet: ScaleFleet, case: str) -> list[Result]:
    statuses = [i.get("status") or {} for kind in ("BaseModel", "LoRAAdapter", "Tenant") for i in fleet.items(kind)]
    largest = max(len(json.dumps(status)) for status in statuses) / 1024
    documents = fleet.cluster.list("ConfigMap", SYSTEM, "lorafleet.dev/fleet=true")
    packed = max(len(d["binaryData"]["document.json.gz"]) * 3 / 4 for d in documents) / 1024
    assert all(unpacked(document) for document in documents)
    return [
        _goal(case, "largest status", largest, "KiB", STATUS_KIB),
        Result(BENCH, case, "largest fleet document, gzipped", packed, "KiB", goal="≤ 1024", met=packed <= 1024),
    ]


def _one_more(fleet: ScaleFleet, case: str, first: int) -> list[Result]:
    taken = _each_served(fleet, first, 20)
    return [
        _time(case, "one more servable, median", statistics.median(taken), len(taken)),
        _time(case, "one more servable, slowest of 20", max(taken), len(taken)),
    ]


def _pod_restart(fleet: ScaleFleet, case: str) -> list[Result]:
    """A runtime that starts again is filled again, and nobody else is touched."""
    fleet.settle()
    address = fleet.pods()[0]["status"]["podIP"]
    before = fleet.calls()
    held = before[address]["PUT"]
    fleet.restart(address)
    deadline = time.monotonic() + 60
    while fleet.calls()[address]["PUT"] - before[address]["PUT"] < held and time.monotonic() < deadline:
        time.sleep(0.2)
    fleet.settle()
    after = fleet.calls()
    others = sum(after[a] != before.get(a) for a in after if a != address)
    again = after[address]["PUT"] - before[address]["PUT"]
    return [
        Result(BENCH, case, "one runtime starts again: its adapters loaded again", again, "loads", held, again / held),
        _goal(case, "one runtime starts again: other pods called", others, "pods", 0.0),
    ]


def _failover(fleet: ScaleFleet, case: str, number: int) -> list[Result]:
    """From `kill -9` of the acting operator to an adapter that only the second one can have placed."""
    log = fleet.operator.log_file.with_name("second.log")
    second = OperatorProcess(fleet.cluster, fleet.artifacts, log, "operator-1")
    second.start()
    try:
        _until_calm(second)  # it has listed everything, looked at every source, and waits for the Lease
        fleet.operator.stop(signal.SIGKILL)
        begun = time.monotonic()
        fleet.create([fleet.adapter(number)])
        fleet.until_served(number, 120)
        taken = time.monotonic() - begun
        return [_goal(case, "failover: killed to next adapter servable", taken, "s", FAILOVER_SECONDS)]
    finally:
        second.stop()


def _until_calm(operator: OperatorProcess) -> None:
    """Wait until an operator that has just been started does no more than an idle one."""
    process = _process(operator)
    for _ in range(60):
        cpu = sum(process.cpu_times()[:2])
        time.sleep(5)
        if (sum(process.cpu_times()[:2]) - cpu) / 5 < 2 * IDLE_CORES:
            return
    raise AssertionError("the second operator is not calm after five minutes")


def _gate(fleet: ScaleFleet, adapters: int) -> None:
    """Correctness first: adapters of every base model and tenant answer, each from a pod that holds it."""
    for number in range(0, adapters, max(adapters // 100, 1)):
        fleet.until_served(number)
        text = fleet.complete(number).json()["choices"][0]["text"]
        assert text.startswith(f"t{number % fleet.tenants}.a{number} at 10."), text


def _per_change(writes: Calls, changes: int) -> dict[str, float]:
    return {kind: _of(writes, kind) / changes for kind in sorted({kind for _, kind in writes})}


def _of(calls: Calls, kind: str) -> float:
    return sum(n for (verb, of), n in calls.items() if of == kind and verb in WRITES)


def _process(operator: OperatorProcess) -> psutil.Process:
    assert operator.process is not None
    return psutil.Process(operator.process.pid)


def _quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)]


def _time(case: str, metric: str, value: float, repeats: int, goal: float | None = None) -> Result:
    if goal is None:
        return Result(BENCH, case, metric, value, "s", repeats=repeats)
    return Result(BENCH, case, metric, value, "s", goal=f"≤ {goal:g}", met=value <= goal, repeats=repeats)


def _goal(case: str, metric: str, value: float, unit: str, goal: float) -> Result:
    return Result(BENCH, case, metric, value, unit, goal=f"≤ {goal:g}", met=value <= goal)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
