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

keep_freed()
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
PAGES_OF_ALL = 20 * 5 * 3072


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_large_intermediates_are_not_taken_from_the_system_anew_at_each_step() -> None:
    faults, given = map(int, subprocess.check_output([sys.executable, "-c", PROGRAM], text=True).split())
    assert faults < PAGES_OF_ALL / 4
    assert given > 50
