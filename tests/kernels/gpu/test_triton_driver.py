"""Triton speaks to the driver where nothing can be compiled, with a module that was made elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lorafleet_kernels.gpu.triton_driver import VARIABLE, NoDriverModule, file_name, make

SPEAKS = """
from lorafleet_kernels.gpu.triton_driver import use_what_is_there
use_what_is_there()
from triton.backends.nvidia.driver import CudaUtils
print(CudaUtils().launch.__name__)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made"))


def a_driver(folder: Path, module: Path) -> Path:
    """A library with the name of the driver's, that has all that the module asks for and does nothing."""
    asked = subprocess.run(["nm", "-D", "--undefined-only", module], capture_output=True, text=True, check=True).stdout
    names = [line.split()[-1] for line in asked.splitlines() if line.split()[-1].startswith("cu")]
    assert names
    source = folder / "driver.c"
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in names))
    library = folder / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return folder


def speak(tmp_path: Path, made: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process that finds no compiler, and in which Triton has compiled nothing before."""
    libraries = str(a_driver(tmp_path, made))
    inherited = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "CC")}
    environment = inherited | environment | {
        "PATH": "/nowhere", "LD_LIBRARY_PATH": libraries, "TRITON_LIBCUDA_PATH": libraries,
        "TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    return subprocess.run([sys.executable, "-c", SPEAKS], capture_output=True, text=True, env=environment)


def test_a_module_made_elsewhere_serves_where_there_is_no_compiler(tmp_path: Path, made: Path) -> None:
    spoke = speak(tmp_path, made, **{VARIABLE: str(made.parent)})

    assert spoke.stdout == "launch\n", spoke.stderr


def test_without_it_what_to_do_is_said(tmp_path: Path, made: Path) -> None:
    spoke = speak(tmp_path, made)

    assert spoke.returncode
    assert "there is no C compiler: install gcc, or clang, or set $CC; or make the module elsewhere" in spoke.stderr
    assert VARIABLE in spoke.stderr


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'cannot find -lc' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))

    with pytest.raises(NoDriverModule, match="cannot find -lc"):
        make(tmp_path / "made")
    assert not (tmp_path / "made" / file_name()).exists()


def test_missing_headers_of_python_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})

    with pytest.raises(NoDriverModule, match=f"no headers of Python in {tmp_path}: install them"):
        make(tmp_path / "made")
