"""Native operations are compiled once where they can be, and plain torch computes where they cannot."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lorafleet_kernels import build, dispatch
from lorafleet_kernels.build import CannotBuild, default_folder, library, main, portable_libraries
from lorafleet_kernels.native import Native
from lorafleet_kernels.native_check import first_difference


def one_thread() -> int:
    return 1


def compiled(dtype: torch.dtype) -> Native:
    try:
        return Native(dtype, one_thread)
    except CannotBuild as error:
        pytest.skip(f"no native operations here: {error}")


def test_without_a_compiler_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotBuild, match="no C compiler here"):
        library("float32", tmp_path)


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "broken-cc"
    compiler.write_text("#!/bin/sh\necho 'no such option: -march' >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(CannotBuild, match="broken-cc failed: no such option: -march"):
        library("bfloat16", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_compiled_library_is_found_again_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(torch.float32)
    monkeypatch.setenv("CC", "/nonexistent/compiler")
    assert library("float32", default_folder()).exists()


def test_element_types_have_libraries_of_their_own() -> None:
    compiled(torch.float32)
    compiled(torch.bfloat16)
    assert library("float32", default_folder()) != library("bfloat16", default_folder())


@pytest.mark.slow
def test_processes_that_start_together_share_one_library(tmp_path: Path) -> None:
    compiled(torch.float32)
    command = [sys.executable, "-m", "lorafleet_kernels.build", str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]
    assert sorted(map(str, tmp_path.iterdir())) == sorted(outputs[0])


@pytest.mark.slow
def test_an_image_takes_the_best_library_that_fits_its_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(torch.float32)
    kinds = build.PORTABLE.get(platform.machine(), ())
    here = [kind.name for kind in kinds if kind.needs <= set(build._processor_features().split())]
    if not here:
        pytest.skip("no portable library is made for this processor")
    made = list(portable_libraries(tmp_path, (here[0], here[-1])))
    monkeypatch.setenv("LORAFLEET_NATIVE_PORTABLE", str(tmp_path))
    monkeypatch.setenv("CC", "/nonexistent/compiler")

    for best in (made[:2], made[2:] or made[:2]):
        for dtype in (torch.float32, torch.bfloat16):
            assert library(str(dtype).removeprefix("torch."), tmp_path / "cache") in best
            assert first_difference(Native(dtype, one_thread, tmp_path / "cache"), dtype) == ""
        for path in best if made[2:] else ():
            path.unlink(missing_ok=True)
    monkeypatch.setattr(build, "_processor_features", lambda: "flags : fpu sse2")
    with pytest.raises(CannotBuild):
        library("float32", tmp_path / "cache")


def test_every_older_processor_runs_what_a_newer_one_runs() -> None:
    for kinds in build.PORTABLE.values():
        assert all(newer.needs > older.needs for newer, older in pairwise(kinds)), "the best that fits comes first"


def test_the_command_wants_one_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().err


def test_native_operations_share_the_threads_of_torch() -> None:
    native = Native(torch.float32, lambda: 2) if compiled(torch.float32) else None
    assert native is not None
    torch.set_num_threads(2)
    torch.randn(512, 512) @ torch.randn(512, 512)
    torch.randn(1 << 20).exp()
    running = len(os.listdir("/proc/self/task"))
    native.silu_and_mul(torch.randn(512, 1024))
    assert len(os.listdir("/proc/self/task")) == running


def test_a_library_that_computes_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    native = compiled(torch.float32)
    assert first_difference(native, torch.float32) == ""
    real = native.functions["lorafleet_silu_and_mul"]
    native.functions["lorafleet_silu_and_mul"] = lambda x, out, rows, width, threads: real(x, out, rows, width - 1, 1)
    assert first_difference(native, torch.float32).startswith("the compiled silu_and_mul differs from the reference")

    monkeypatch.setattr(dispatch, "Native", lambda dtype, threads: native)
    with caplog.at_level(logging.WARNING):
        assert not dispatch.operations(torch.float32, torch.device("cpu"), lambda: 1).native
    assert "plain torch computes on this CPU" in caplog.text
    assert "silu_and_mul differs" in caplog.text


@pytest.mark.parametrize(
    ("off", "dtype", "device"),
    [("0", torch.float32, "cpu"), ("", torch.float16, "cpu"), ("", torch.float32, "meta")],
    ids=["switched off", "another type", "another device"],
)
def test_the_reference_computes_where_native_operations_are_not_for(
    off: str, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAFLEET_NATIVE", off)
    ops = dispatch.operations(dtype, torch.device(device), one_thread)
    assert not ops.native
    assert not ops.tiles_fit(torch.zeros(64, 64))
    x = torch.randn(3, 8, dtype=torch.float32)
    assert ops.silu_and_mul(x).shape == (3, 4)
