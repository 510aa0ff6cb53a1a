"""What may run before a barrier, in PTX and in machine code."""

from __future__ import annotations

import pytest

from lorafleet_kernels.gpu.instructions import before, parse_machine, parse_ptx

PTX = """
.version 9.0
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0
)
.reqntid 128
{
	.reg .pred 	%p<6>;
$L__func_begin0:
	.loc	1 6 0                           // kernel.py:6:0
	ld.param.b64 	%rd1, [kernel_param_0];  // a comment; with a semicolon
	@%p1 bra 	$L__BB0_2;
	// begin inline asm
	{ .reg .b32 a;
    mov.b32 a, 0; }
}
	// end inline asm
	bar.sync 0;
$L__BB0_2:
	.loc	1 7 0
	ld.global.v2.b32 { %r1, %r2 }, [ %rd1 + 0 ];
	ret;
$L__func_end0:
}
	.file	1 "kernel.py"
	.section	.debug_info
	{
.b8 1
	}
"""
SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;                       /* 0x00000a00ff017b82 */
                                                                                /* 0x000fe20000000f00 */
        /*0010*/              @!P0 BRA 0x40 ;                                   /* 0x0000000000002919 */
        /*0020*/                   BAR.SYNC 0x0 ;                               /* 0x0000000000002919 */
        /*0030*/                   BRA.U UP0, 0x10 ;                            /* 0x0000000000002919 */
        /*0040*/                   EXIT ;                                       /* 0x000000000000794d */
"""


def test_ptx_is_read_without_directives_comments_and_scopes() -> None:
    code = parse_ptx(PTX)

    assert [str(each) for each in code] == [
        "ld.param.b64 %rd1, [kernel_param_0]",
        "bra $L__BB0_2",
        "mov.b32 a, 0",
        "bar.sync 0",
        "ld.global.v2.b32 { %r1, %r2 }, [ %rd1 + 0 ]",
        "ret",
    ]
    assert [each.guarded for each in code] == [False, True, False, False, False, False]
    assert code[0].labels == ("$L__func_begin0",)
    assert code[4].labels == (code[1].target,)


def test_machine_code_has_addresses_for_labels_and_conditions_among_operands() -> None:
    code = parse_machine(SASS)

    assert [each.kind for each in code] == ["LDC", "BRA", "BAR", "BRA", "EXIT"]
    assert [each.guarded for each in code] == [False, True, False, True, False]
    assert (code[1].target, code[3].target) == code[4].labels + code[1].labels


@pytest.mark.parametrize(
    ("code", "barrier", "passed"),
    [
        (parse_ptx(PTX), "bar.sync", ["ld.param.b64", "bra", "mov.b32", "ld.global.v2.b32", "ret"]),
        (parse_machine(SASS), "BAR.SYNC", ["LDC", "BRA", "EXIT"]),
        (parse_machine(SASS), "LDC", []),
    ],
)
def test_a_way_around_the_barrier_is_gone(code: list[object], barrier: str, passed: list[str]) -> None:
    assert [each.opcode for each in before(code, barrier)] == passed  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gone", "fault"),
    [("	ret;", "stops without an end"), ("$L__BB0_2:\n", r"bra \$L__BB0_2: a jump to where nothing is")],
)
def test_code_that_cannot_be_followed_is_refused(gone: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        before(parse_ptx(PTX.replace(gone, "")), "none")


def test_a_module_without_a_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="no kernel in the PTX"):
        parse_ptx(PTX.replace(".entry", ".func"))
