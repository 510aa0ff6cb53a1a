"""Compiles the native CPU operations on the machine that runs them, once, and finds them again.

`python -m lorafleet_kernels.build FOLDER` compiles for this processor into a folder, which
`LORAFLEET_NATIVE_CACHE=FOLDER` names at run time. With `--portable` before the folder it compiles for the kinds of
processor that there are, for images that run anywhere without a compiler: with `LORAFLEET_NATIVE_PORTABLE=FOLDER` the
best that fits is taken.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorafleet_kernels.cache_folder import cache_folder

SOURCES = Path(__file__).with_name("cpu")
FLAGS = ("-std=gnu11", "-O3", "-fopenmp", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
NATIVE = ("-march=native",)
COMPILE_SECONDS = 120
ELEMENTS = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Processor:
    """A kind of processor: what a compiler is told of it, and the kernel's names for what it must have."""

    name: str
    flags: tuple[str, ...]
    needs: frozenset[str]


_V3 = frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_AMX_FLAGS = ("-march=x86-64-v4", "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mtune=sapphirerapids")
PORTABLE = {
    "x86_64": (
        Processor("amx", _AMX_FLAGS, _V4 | {"avx512_bf16", "amx_tile", "amx_bf16"}),
        Processor("avx512bf16", ("-march=x86-64-v4", "-mavx512bf16"), _V4 | {"avx512_bf16"}),
        Processor("avx512", ("-march=x86-64-v4",), _V4),
        Processor("avx2", ("-march=x86-64-v3",), _V3),
    ),
    "aarch64": (Processor("armv8", ("-march=armv8-a",), frozenset()),),
}
"""By machine, the best first. Older ones run on plain torch."""


class CannotBuild(Exception):
    """There are no native operations here; the message says why."""


def default_folder() -> Path:
    """`$LORAFLEET_NATIVE_CACHE`, or `lorafleet/native` in the user's cache folder."""
    return cache_folder("LORAFLEET_NATIVE_CACHE", "native")


def library(elements: str, folder: Path) -> Path:
    """The shared library for `elements` (float32 or bfloat16): a portable one that fits this processor, else one of
    its own in `folder`, compiled now if it is not there.

    Raises CannotBuild. Several processes may do this at once: a library appears under its name when it is complete.
    """
    if sys.platform != "linux":
        raise CannotBuild(f"native operations are for Linux, this is {sys.platform}")
    portable = os.environ.get("LORAFLEET_NATIVE_PORTABLE")
    if portable and (ready := _fitting(elements, Path(portable))) is not None:
        return ready
    found = folder / f"{_digest(elements, NATIVE, platform.machine(), _processor_features())}.so"
    return found if found.exists() else _make(elements, NATIVE, found)


def portable_libraries(folder: Path, names: Sequence[str] = ()) -> Iterator[Path]:
    """Compile for every kind of processor of this architecture, or those of these names. Raises CannotBuild."""
    for processor in PORTABLE.get(platform.machine(), ()):
        if processor.name in names or not names:
            for elements in ELEMENTS:
                yield _make(elements, processor.flags, _portable(elements, processor, folder))


def _fitting(elements: str, folder: Path) -> Path | None:
    features = set(_processor_features().split())
    for processor in PORTABLE.get(platform.machine(), ()):
        found = _portable(elements, processor, folder)
        if processor.needs <= features and found.exists():
            return found
    return None


def _portable(elements: str, processor: Processor, folder: Path) -> Path:
    return folder / f"{processor.name}-{elements}-{_digest(elements, processor.flags)}.so"


def _make(elements: str, flags: Sequence[str], into: Path) -> Path:
    sources = sorted(SOURCES.glob("*.c"))
    compiler = _compiler()
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into.parent) as scratch:
            objects = [Path(scratch) / f"{source.stem}.o" for source in sources]
            chosen = [*compiler, *FLAGS, *flags, f"-DLORAFLEET_BF16={int(elements == 'bfloat16')}"]
            for source, compiled in zip(sources, objects, strict=True):
                _run([*chosen, "-c", source, "-o", compiled])
            made = Path(scratch) / "native.so"
            # Linked without -fopenmp: the calls into OpenMP must find torch's, whose threads these operations share.
            _run([*compiler, "-shared", *objects, "-lm", "-o", made])
            made.replace(into)
    except OSError as error:
        raise CannotBuild(f"cannot write to {into.parent}: {error}; set LORAFLEET_NATIVE_CACHE to a folder") from error
    return into


def _digest(*what: object) -> str:
    """Whatever would make another library: sources, flags, and `what`."""
    digest = hashlib.sha256(repr((FLAGS, *what)).encode())
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
    """`python -m lorafleet_kernels.build [--portable] FOLDER`: make the libraries there. Returns the exit status."""
    if len(arguments) not in (1, 2) or (len(arguments) == 2 and arguments[0] != "--portable"):
        print("usage: python -m lorafleet_kernels.build [--portable] FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[-1])
    try:
        for path in portable_libraries(folder) if len(arguments) == 2 else (library(e, folder) for e in ELEMENTS):
            print(path, flush=True)
    except CannotBuild as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
