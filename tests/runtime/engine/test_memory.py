"""What a step frees serves the next step, and goes back to the system when there is nothing to do."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, psutil, torch
from lorafleet_runtime.engine.memory import give_back, keep_freed

def touch():  # twenty steps
    for _ in range(20):
        step = [torch.ones(3 * 2**20) for _ in range(5)]  # of 12 MiB each, freed together

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

{keep}
touch()
before = faults()
touch()
print(faults() - before)
held = [torch.ones(2**18) for _ in range(100)]
end = torch.ones(16)
del held
resident = psutil.Process().memory_info().rss
give_back()
print((resident - psutil.Process().memory_info().rss) >> 20)
"""


def run(keep: str) -> tuple[int, int]:
    """(page faults of the second round, MiB given back at last)."""
    command = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    faults, given = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(faults), int(given)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_large_intermediates_are_not_taken_from_the_system_anew_each_time() -> None:
    without, _ = run("")
    faults, given = run("keep_freed()")
    assert faults < without / 4
    assert given > 50
