"""Compiles the native CPU operations on the machine that runs them, once, and finds them again.

`python -m lorafleet_kernels.build FOLDER` compiles for both element types into a folder, for images whose user has no
compiler; `LORAFLEET_NATIVE_CACHE=FOLDER` names it at run time. The folder must come from the same kind of processor.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).with_name("cpu")
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
COMPILE_SECONDS = 120
ELEMENTS = ("float32", "bfloat16")


class CannotBuild(Exception):
    """There are no native operations here; the message says why."""


def default_folder() -> Path:
    """`$LORAFLEET_NATIVE_CACHE`, or `lorafleet/native` in the user's cache folder."""
    chosen = os.environ.get("LORAFLEET_NATIVE_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafleet" / "native"


def library(elements: str, folder: Path) -> Path:
    """The shared library for `elements` (float32 or bfloat16) in `folder`, compiled now if it is not there.

    Raises CannotBuild. Several processes may do this at once: a library appears under its name when it is complete.
    """
    if sys.platform != "linux":
        raise CannotBuild(f"native operations are for Linux, this is {sys.platform}")
    sources = sorted(SOURCES.glob("*.c"))
    key = _key(elements)
    found = folder / f"{key}.so"
    if found.exists():
        return found
    compiler = _compiler()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            objects = [Path(scratch) / f"{source.stem}.o" for source in sources]
            for source, compiled in zip(sources, objects, strict=True):
                _run(
                    [*compiler, *FLAGS, f"-DLORAFLEET_BF16={int(elements == 'bfloat16')}", "-c", source, "-o", compiled]
                )
            made = Path(scratch) / "native.so"
            # Linked without -fopenmp: the calls into OpenMP must find torch's, whose threads these operations share.
            _run([*compiler, "-shared", *objects, "-lm", "-o", made])
            made.replace(found)
    except OSError as error:
        raise CannotBuild(f"cannot write to {folder}: {error}; set LORAFLEET_NATIVE_CACHE to a folder") from error
    return found


def _key(elements: str) -> str:
    """Whatever would make another library: sources, flags, processor, and the element type."""
    digest = hashlib.sha256(repr((elements, FLAGS, platform.machine(), _processor_features())).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def _processor_features() -> str:
    """The kernel's list of the first processor's features; it differs wherever -march=native would."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("flags", "Features", "vendor_id", "cpu family", "model\t")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def _compiler() -> list[str]:
    asked = os.environ.get("CC")
    if asked:
        return asked.split()
    for name in ("cc", "gcc"):
        if shutil.which(name):
            return [name]
    raise CannotBuild("no C compiler here (looked for $CC, cc, gcc)")


def _run(command: list[str | Path]) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuild(f"{command[0]} did not run: {error}") from error
    if result.returncode:
        said = result.stderr.strip().splitlines()
        raise CannotBuild(f"{command[0]} failed: {said[0] if said else f'exit status {result.returncode}'}")


def main(arguments: list[str]) -> int:
    """`python -m lorafleet_kernels.build FOLDER`: make the libraries there. Returns the exit status."""
    if len(arguments) != 1:
        print("usage: python -m lorafleet_kernels.build FOLDER", file=sys.stderr)
        return 2
    for elements in ELEMENTS:
        try:
            print(library(elements, Path(arguments[0])))
        except CannotBuild as error:
            print(f"{elements}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
