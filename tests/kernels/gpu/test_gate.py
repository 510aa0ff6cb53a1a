"""The gate, as it is run: a process of its own, without a GPU and without the interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorafleet_kernels.gpu.gate import forms_of, kernel_modules
from lorafleet_kernels.gpu.machine_code import CARDS, InterpreterIsOn, MachineCode, compile_for, faults, resident_warps
from lorafleet_kernels.gpu.specialization import INTERPRETED, Specialization

pytestmark = pytest.mark.interpreted

FORM = Specialization("a form", None, {}, {}, warps=8, stages=2, expects=frozenset({"mma"}))
FINE = MachineCode(128, 0, 0, 0, 48 << 10, frozenset({"mma"}))


def gate(*arguments: str, interpret: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    roots = [Path(__file__).parents[3], *map(Path, sys.path)]
    environment["PYTHONPATH"] = os.pathsep.join(map(str, roots))
    command = [sys.executable, "-m", "lorafleet_kernels.gpu.gate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_every_module_of_kernels_is_found_and_says_its_forms() -> None:
    forms = {module.rpartition(".")[2]: forms_of(module) for module in kernel_modules()}

    assert {"lora_shrink", "lora_expand", "activation", "norm"} <= {name for name, listed in forms.items() if listed}
    assert forms["lora_delta"] == []


def test_every_kernel_has_a_form_in_bfloat16_and_one_in_float16() -> None:
    for module in kernel_modules():
        if module.rpartition(".")[2] in ("lora_shrink", "lora_expand", "activation", "norm"):
            names = [form.name.split() for form in forms_of(module)]
            kernels = {name for name, *_ in names}
            assert {(name, dtype) for name, dtype, *_ in names} == {(n, d) for n in kernels for d in ("bf16", "fp16")}


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (MachineCode(128, 8, 0, 0, 0, frozenset({"mma"})), "stack bytes 8, allowed 0"),
        (MachineCode(128, 0, 4, 0, 0, frozenset({"mma"})), "local bytes 4, allowed 0"),
        (MachineCode(128, 0, 0, 3, 0, frozenset({"mma"})), "spill instructions 3, allowed 0"),
        (MachineCode(256, 0, 0, 0, 0, frozenset({"mma"})), "registers 256, allowed 255"),
        (MachineCode(128, 0, 0, 0, 164 << 10, frozenset({"mma"})), "shared memory bytes 167936, allowed 166912"),
        (MachineCode(128, 0, 0, 0, 0, frozenset()), "no mma in the code"),
    ],
)
def test_a_fault_is_told_with_its_number(code: MachineCode, fault: str) -> None:
    assert faults(FORM, code, CARDS["sm_80"]) == [fault]
    assert faults(FORM, FINE, CARDS["sm_80"]) == []


def test_a_block_may_not_need_more_registers_than_a_processor_has() -> None:
    form = Specialization("a form", None, {}, {}, warps=16, stages=2)

    assert faults(form, MachineCode(255, 0, 0, 0, 0, frozenset()), CARDS["sm_90"]) == [
        "registers of a block 130560, allowed 65536"
    ]


@pytest.mark.parametrize(
    ("registers", "shared", "warps"), [(32, 0, 64), (128, 0, 16), (32, 100 << 10, 8), (32, 48 << 10, 24)]
)
def test_resident_warps_are_bounded_by_registers_and_by_shared_memory(registers: int, shared: int, warps: int) -> None:
    code = MachineCode(registers, 0, 0, 0, shared, frozenset())

    assert resident_warps(FORM, code, CARDS["sm_80"]) == warps


@pytest.mark.skipif(not INTERPRETED, reason="Triton compiles here")
def test_nothing_is_compiled_where_triton_interprets() -> None:
    with pytest.raises(InterpreterIsOn, match="TRITON_INTERPRET=1 is set"):
        compile_for(FORM, CARDS["sm_90"])
    run = gate(interpret=True)
    assert run.returncode == 2
    assert "TRITON_INTERPRET=1 is set" in run.stderr


def test_unknown_cards_and_forms_are_refused() -> None:
    card, form = gate("--target", "sm_90,sm_12"), gate("--only", "no such form")

    assert (card.returncode, form.returncode) == (2, 2)
    assert "no such card: sm_12; there are sm_80, sm_90" in card.stderr
    assert "nothing to check" in form.stderr


def test_a_part_of_the_forms_is_chosen_by_what_names_contain_or_not_and_as_a_sample() -> None:
    def chosen(*arguments: str) -> list[tuple[str, str]]:
        run = gate("tests.kernels.gpu.spilling", "--json", *arguments)
        return [(v["form"], v["card"]) for v in json.loads(run.stdout)]

    assert chosen("--only", "fits") == [("fits", "sm_80"), ("fits", "sm_90")]
    assert chosen("--but", "s", "--target", "sm_90") == [("no mma", "sm_90")]
    assert chosen("--every", "3") == [("spills", "sm_80"), ("fits", "sm_90"), ("misnamed", "sm_80")]
    assert gate("--every", "0").returncode == 2


def test_forms_that_must_not_ship_fail_and_are_named() -> None:
    run = gate("tests.kernels.gpu.spilling", "--json")

    verdicts: list[dict[str, Any]] = json.loads(run.stdout)
    assert run.returncode == 1
    assert {(v["form"], v["card"]): bool(v["faults"]) for v in verdicts} == {
        (form, card): form != "fits" for form in ("spills", "fits", "no mma", "misnamed") for card in CARDS
    }
    for card in CARDS:
        assert f"FAIL tests.kernels.gpu.spilling: spills on {card}: stack bytes " in run.stderr
        assert f"FAIL tests.kernels.gpu.spilling: no mma on {card}: no mma in the code" in run.stderr
        assert f"misnamed on {card}: does not compile: ValueError: misnamed: arguments without a type" in run.stderr
    assert "2 of 8 forms pass" in run.stderr


def test_a_kernel_that_acts_before_those_ahead_of_it_have_ended_fails() -> None:
    run = gate("tests.kernels.gpu.early", "--target", "sm_90", "--json")

    faults: dict[str, list[str]] = {v["form"]: v["faults"] for v in json.loads(run.stdout)}
    assert run.returncode == 1
    assert [form for form, found in faults.items() if not found] == ["waits"]
    for code in ("PTX", "machine code"):
        assert f"a program may end before it waits, in the {code}" in faults["leaves"]
        for form in ("writes", "loops"):
            assert any(fault.endswith(f"a write before the wait, in the {code}") for fault in faults[form])
    assert faults["reads"][0].endswith("reads x before the wait")
    assert "no griddepcontrol.wait in the PTX" in faults["no wait"]
    assert "griddepcontrol.wait in a form that is not dependent" in faults["unasked"]


def test_every_form_in_bfloat16_passes() -> None:
    """On every card; a sample of the rotation, which ships for every size of heads, with norms or without, behind
    expands of three types of weights, and of forms that start early, which are the others with a wait more. In float16
    forms have the same sizes: the command alone checks them all."""
    modules = [module for module in kernel_modules() if not module.endswith(".rope_kv") and forms_of(module)]
    runs = [
        gate(*modules, "--only", "bf16", "--but", "dependent"),
        gate("lorafleet_kernels.gpu.kernels.tokens"),
        gate("lorafleet_kernels.gpu.kernels.rope_kv", "--only", "bf16", "--but", "dependent", "--every", "7"),
        gate("--target", "sm_90", "--only", "dependent", "--every", "9"),
    ]

    for run in runs:
        assert run.returncode == 0, run.stderr
        assert "FAIL" not in run.stdout
