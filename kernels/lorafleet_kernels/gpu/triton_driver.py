"""Triton's own module that speaks to the driver, where there is no C compiler to make it.

Triton compiles it at the first launch in a process whose cache is empty. An image of a server has no compiler, so it
brings the module: `python -m lorafleet_kernels.gpu.triton_driver FOLDER` makes it where there is one, needing neither
a GPU nor a driver, and `LORAFLEET_TRITON_DRIVER` names the folder at run time. Kernels themselves need no compiler but
Triton's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from triton import knobs
from triton.backends.nvidia import driver

MODULE = "cuda_utils"
"""Triton's name for it."""
VARIABLE = "LORAFLEET_TRITON_DRIVER"


class NoDriverModule(ImportError):
    """Triton cannot speak to the driver here; the message says why, and what to do."""


def file_name() -> str:
    """Of the module, for this Python."""
    return f"{MODULE}{sysconfig.get_config_var('EXT_SUFFIX')}"


def make(folder: Path) -> Path:
    """Compile the module into `folder`. Raises NoDriverModule where something is missing, or the compiler fails."""
    compiler, headers = _compiler_and_headers()
    here = Path(driver.__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        # In the place of the driver's library, which a machine without a GPU has not: only its name is taken down.
        library = Path(scratch) / "libcuda.so.1"
        named = "-Wl,-soname,libcuda.so.1"
        stand_in = [compiler, "-shared", "-nostdlib", named, "-o", f"{library}", "-x", "c", os.devnull]
        module = folder / file_name()
        includes = [f"-I{here / 'include'}", f"-I{headers}"]
        build = [
            compiler, f"{here / 'driver.c'}", "-O3", "-shared", "-fPIC", "-Wno-psabi", "-Wl,--no-as-needed",
            f"-L{scratch}", "-l:libcuda.so.1", *includes, "-o", f"{module}",
        ]  # fmt: skip
        for command in (stand_in, build):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                why = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
                raise NoDriverModule(f"{' '.join(command)} failed: {'; '.join(why)}")
    return module


def use_what_is_there() -> None:
    """Have Triton take the module that `LORAFLEET_TRITON_DRIVER` names. Raises NoDriverModule where there is neither
    that nor a compiler."""
    folder = os.environ.get(VARIABLE)
    if folder and (module := Path(folder) / file_name()).is_file():

        def ready(name: str, source: str, *others: object) -> str:
            if name == MODULE:
                return f"{module}"
            raise NoDriverModule(f"Triton wants to compile {source}: {VARIABLE} brings {MODULE} only: install gcc")

        knobs.build.impl = ready
        return
    try:
        _compiler_and_headers()
    except NoDriverModule as missing:
        raise NoDriverModule(
            f"Triton compiles a module in C at its first launch, and {missing}; or make the module elsewhere "
            f"(python -m lorafleet_kernels.gpu.triton_driver FOLDER) and set {VARIABLE}"
        ) from None


def _compiler_and_headers() -> tuple[str, Path]:
    """Raises NoDriverModule where one is missing."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_paths()["include"])
    if compiler is None:
        raise NoDriverModule("there is no C compiler: install gcc, or clang, or set $CC")
    if not (headers / "Python.h").is_file():
        raise NoDriverModule(f"there are no headers of Python in {headers}: install them (Debian: python3-dev)")
    return compiler, headers


def main() -> int:
    """The command; returns its exit status: 1 where the module cannot be made, 2 for wrong arguments."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(make(Path(sys.argv[1])))
    except NoDriverModule as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
