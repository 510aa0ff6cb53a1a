"""Who computes, by device and by what the environment asks for."""

from __future__ import annotations

import sys

import pytest
import torch

from lorafleet_kernels.batch import HeadSizes
from lorafleet_kernels.dispatch import operations
from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.operations import TritonOperations
from lorafleet_kernels.operations import Operations

CPU = torch.device("cpu")


def found() -> Operations:
    return operations(torch.float32, CPU, lambda: 1)


def test_a_cpu_has_native_operations_unless_the_reference_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORAFLEET_KERNELS", raising=False)
    assert found().native
    monkeypatch.setenv("LORAFLEET_KERNELS", "reference")
    assert not found().native
    assert not found().aligns_adapters


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is no interpreter beside a GPU")
def test_a_cpu_has_tritons_kernels_in_the_interpreter_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFLEET_KERNELS", "triton")
    assert isinstance(found(), TritonOperations)
    assert found().aligns_adapters
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1"):
        found()


def test_what_is_unknown_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFLEET_KERNELS", "cutlass")
    with pytest.raises(ValueError, match="LORAFLEET_KERNELS=cutlass is unknown: write reference, triton or nothing"):
        found()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is no interpreter beside a GPU")
def test_dependent_launches_are_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFLEET_KERNELS", "triton")
    for asked, dependent in (("", False), ("0", False), ("1", True)):
        monkeypatch.setenv("LORAFLEET_DEPENDENT_LAUNCHES", asked)
        ops = found()
        assert isinstance(ops, TritonOperations)
        assert ops.dependent is dependent
        assert ops.heads(HeadSizes(4, 2, 64, 1e-6), torch.float32)[0].dependent is dependent


def test_dependent_launches_are_refused_by_name_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFLEET_DEPENDENT_LAUNCHES", "1")
    monkeypatch.setenv("LORAFLEET_KERNELS", "reference")
    with pytest.raises(ValueError, match="LORAFLEET_DEPENDENT_LAUNCHES=1: only Triton's kernels on a GPU"):
        found()
    monkeypatch.setenv("LORAFLEET_KERNELS", "triton")
    monkeypatch.setattr(Card, "of", lambda device: Card("an A100", (8, 0), 108))
    with pytest.raises(ValueError, match=r"LORAFLEET_DEPENDENT_LAUNCHES=1: an A100 has compute capability 8\.0"):
        found()
    monkeypatch.setenv("LORAFLEET_DEPENDENT_LAUNCHES", "yes")
    with pytest.raises(ValueError, match="LORAFLEET_DEPENDENT_LAUNCHES=yes is unknown: write 1, 0 or nothing"):
        found()


def test_without_triton_a_gpu_has_the_reference_and_who_insists_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lorafleet_kernels.gpu.operations", None)
    monkeypatch.delenv("LORAFLEET_KERNELS", raising=False)
    with pytest.MonkeyPatch.context() as patch:
        warnings: list[str] = []
        patch.setattr("lorafleet_kernels.dispatch.log.warning", lambda text, *_: warnings.append(text))
        plain = operations(torch.float32, torch.device("cuda"), lambda: 1)
    assert not plain.aligns_adapters
    assert [text.startswith("plain torch computes on this GPU") for text in warnings] == [True]
    monkeypatch.setenv("LORAFLEET_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="LORAFLEET_KERNELS=triton, and Triton cannot be used"):
        found()
