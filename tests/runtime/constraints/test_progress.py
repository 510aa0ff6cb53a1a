"""The count that two processes see."""

from __future__ import annotations

import os
import subprocess
import sys

from lorafleet_runtime.constraints.progress import Progress, shared_memory

CHILD = (
    "import sys; from lorafleet_runtime.constraints.progress import Progress; Progress(int(sys.argv[1])).making = {}"
)


def test_what_another_process_writes_is_there_after_its_end() -> None:
    descriptor = shared_memory()
    progress = Progress(descriptor)
    begun = progress.making
    subprocess.run((sys.executable, "-c", CHILD.format(2**40 + 3), f"{descriptor}"), pass_fds=(descriptor,), check=True)
    os.close(descriptor)

    assert begun == 0
    assert progress.making == 2**40 + 3
