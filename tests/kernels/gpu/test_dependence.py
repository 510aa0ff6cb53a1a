"""What is wrong with a kernel that starts early is seen in its code."""

from __future__ import annotations

import pytest

from lorafleet_kernels.gpu.dependence import order_faults
from lorafleet_kernels.gpu.specialization import EARLY, Specialization, also_dependent

POINTERS = ("out", "x", "row_adapters", "pages", "", "planes")
"""Of the kernel below; the fifth parameter is a number."""
BEFORE = """
	griddepcontrol.launch_dependents ;
	ld.param.b64 	%rd1, [kernel_param_1];
	ld.param.b64 	%rd2, [kernel_param_2];
	ld.param.b64 	%rd3, [kernel_param_3];
	ld.param.b32 	%r9, [kernel_param_4];
	mad.wide.s32 	%rd4, %r9, 4, %rd2;
	ld.global.b32 	{ %r1 }, [ %rd4 + 0 ];
	mad.wide.s32 	%rd5, %r1, 4, %rd3;
	ld.global.b32 	{ %r2 }, [ %rd5 + 0 ];
	mad.wide.s32 	%rd6, %r2, 64, %rd1;
	prefetch.global.L2 [%rd6];
	setp.lt.s32 	%p1, %r1, 0;
	@%p1 bra 	$L__early;
"""
WAIT = "	griddepcontrol.wait ;\n"
AFTER = """
	ld.global.b32 	%r3, [ %rd6 + 0 ];
	ld.param.b64 	%rd7, [kernel_param_0];
	st.global.b32 	[ %rd7 + 0 ], { %r3 };
	ret;
$L__early:
"""
SASS = ("PREEXIT", "LDG.E R0, [R2]", "LDG.E R1, [R4]", "ACQBULK", "LDG.E R3, [R6]", "STG.E [R8], R3", "EXIT")


def ptx(body: str) -> str:
    return f".visible .entry kernel(\n	.param .u64 kernel_param_0\n)\n{{\n{body}}}\n"


def machine(*instructions: str) -> str:
    return "\n".join(f"        /*{16 * at:04x}*/    {each} ;   /* 0x0 */" for at, each in enumerate(instructions))


RIGHT = BEFORE + WAIT + AFTER + WAIT + "	ret;\n"


def test_what_waits_on_every_way_and_reads_only_what_the_step_was_told_is_right() -> None:
    assert order_faults(ptx(RIGHT), machine(*SASS), POINTERS, EARLY) == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (BEFORE + WAIT + AFTER + "	ret;\n", "a program may end before it waits, in the PTX"),
        (BEFORE + AFTER + WAIT + "	ret;\n", "a write before the wait, in the PTX"),
        (BEFORE + AFTER + WAIT + "	ret;\n", "ld.global.b32 %r3, [ %rd6 + 0 ]: reads x before the wait"),
        (RIGHT.replace("launch_dependents", "wait", 1), "no griddepcontrol.launch_dependents in the PTX"),
        (BEFORE + "	atom.global.add.u32 %r4, [ %rd2 ], 1;\n" + WAIT + AFTER + WAIT + "	ret;\n", "atom.global.add.u32"),
        (BEFORE + "	call.uni far;\n" + WAIT + AFTER + WAIT + "	ret;\n", "nothing shows where it leads"),
        (
            BEFORE + "	cp.async.cg.shared.global [ %r9 ], [ %rd1 ], 16;\n" + WAIT + AFTER + WAIT + "	ret;\n",
            "cp.async.cg.shared.global [ %r9 ], [ %rd1 ], 16: reads x before the wait",
        ),
        # Through shared memory, through a parameter that the kernel's arguments do not name, and out of nowhere.
        (
            BEFORE + "	st.shared.b64 [ %r9 ], %rd1;\n	ld.shared.b64 %rd8, [ %r9 ];\n	ld.global.b32 %r5, [ %rd8 ];\n"
            + WAIT + AFTER + WAIT + "	ret;\n",
            "ld.global.b32 %r5, [ %rd8 ]: reads x before the wait",
        ),
        (
            BEFORE + "	ld.param.b64 %rd8, [kernel_param_7];\n	ld.b32 %r5, [ %rd8 ];\n" + WAIT + AFTER + WAIT
            + "	ret;\n", "reads parameter 7 before the wait",
        ),
        (BEFORE + "	ld.global.b32 %r5, [ global ];\n" + WAIT + AFTER + WAIT + "	ret;\n", "reads nobody knows what"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_ptx_is_told(body: str, fault: str) -> None:
    assert any(fault in told for told in order_faults(ptx(body), machine(*SASS), POINTERS, EARLY))


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (SASS[:3] + SASS[4:], "no ACQBULK in the machine code"),
        (SASS[1:], "no PREEXIT in the machine code"),
        (("@P0 EXIT", *SASS), "a program may end before it waits, in the machine code"),
        (("STG.E [R8], R3", *SASS), "STG.E [R8], R3: a write before the wait, in the machine code"),
        (("LDG.E R3, [R6]", *SASS), "3 loads before the wait in the machine code, 2 in the PTX"),
    ],
)
def test_what_the_assembler_did_wrong_is_told(code: tuple[str, ...], fault: str) -> None:
    assert fault in order_faults(ptx(RIGHT), machine(*code), POINTERS, EARLY)


def test_a_form_is_there_without_and_on_the_card_that_has_them_with_dependent_launches() -> None:
    everywhere = Specialization("a form", None, {}, {"N": 1}, 4, 2)
    elsewhere = Specialization("bits", None, {}, {"N": 1}, 4, 2, cards=frozenset({"sm_80"}))

    forms = {form.name: form for form in also_dependent([everywhere, elsewhere])}

    assert list(forms) == ["a form", "bits", "a form dependent"]
    assert [form.constants["DEPENDENT"] for form in forms.values()] == [False, False, True]
    assert [form.dependent for form in forms.values()] == [False, False, True]
    assert forms["a form dependent"].cards == {"sm_90"}
