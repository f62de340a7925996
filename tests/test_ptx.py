"""What a compiled kernel may do before it waits for the launch before it, read from its code."""

import pytest
from ptx import END, WAIT, Statement, before, parameter_names, parse

# If the program has rows: loads a start, adds an offset to the hidden states' address, waits, loads there. Otherwise it
# waits and ends.
PTX = """\
.visible .entry k(
	.param .u64 .ptr .global .align 1 k_param_0,
	.param .u64 .ptr .global .align 1 k_param_1,
	.param .u32 k_param_2,
	.param .u64 .ptr .global .align 1 k_param_3,
	.param .u64 .ptr .global .align 1 k_param_4
)
.reqntid 128
{
	.reg .pred 	%p<2>;
	.reg .b64 	%rd<6>;

// %bb.0:
	ld.param.b64 	%rd1, [k_param_0];
	ld.param.b64 	%rd2, [k_param_1];
	ld.param.b32 	%r1, [k_param_2];
	// begin inline asm
	ld.global.b32 { %r2 }, [ %rd1 + 0 ];
	// end inline asm
	setp.ge.s32 	%p1, %r1, %r2;
	@%p1 bra 	$L__BB0_2;
// %bb.1:
	mul.wide.s32 	%rd3, %r2, 4;
	add.s64 	%rd4, %rd2, %rd3;
	BEFORE
	griddepcontrol.wait; // dummy %r3
	AFTER
	bra.uni 	$L__BB0_3;
$L__BB0_2:                              // no rows
	OTHERWISE
$L__BB0_3:
	ret;
                                        // -- End function
}
"""
NAMES = ["starts", "hidden", ""]
LOAD = "ld.global.v2.b32 { %r4, %r5 }, [ %rd4 + 0 ];"
COPY = "cp.async.cg.shared.global [ %r6 + 0 ], [ %rd4 + 16 ], 0x10, %r7;"
LOOP = """\
mov.b64 %rd5, %rd1;
$L__BB0_4:
	ld.global.b32 { %r8 }, [ %rd5 + 0 ];
	mov.b64 %rd5, %rd4;
	@%p1 bra $L__BB0_4;
"""
ASSEMBLY_LOOP = """\
{
	.reg .pred complete;
	waitLoop:
	mbarrier.try_wait.parity.shared.b64 complete, [%r9], %r10;
	@!complete bra.uni waitLoop;
}
"""


def kernel(before: str = "", after: str = LOAD, otherwise: str = f"{WAIT};") -> str:
    return PTX.replace("BEFORE", before).replace("AFTER", after).replace("OTHERWISE", otherwise)


@pytest.mark.parametrize(
    ("ptx", "found"),
    [
        (kernel(), ("starts",)),
        (kernel(after=ASSEMBLY_LOOP + LOAD), ("starts",)),
        (kernel(before=ASSEMBLY_LOOP), ("starts",)),
        (kernel(before=LOAD), ("hidden", "starts")),
        (kernel(before="@%p1 " + LOAD), ("hidden", "starts")),
        (kernel(before="st.global.b32 [ %rd4 + 0 ], { %r2 };"), ("hidden", "starts")),
        (kernel(before="atom.add.acq_rel.gpu.global.u32 %r4, [ %rd4 + 0 ], %r2;"), ("hidden", "starts")),
        (kernel(before=COPY), ("hidden", "starts")),
        (kernel(before=LOOP), ("hidden", "starts")),  # the second time round
        (kernel(before="bra $L__BB0_3;"), (END, "starts")),
        (kernel(otherwise=""), (END, "starts")),
        (kernel(otherwise=f"@%p1 {WAIT};"), (END, "starts")),
        (kernel(otherwise=LOAD.replace("%rd4", "%rd2")), (END, "hidden", "starts")),
        (kernel(before="@%p1 ret;"), (END, "starts")),
    ],
)
def test_what_some_path_touches_before_it_waits(ptx: str, found: tuple[str, ...]) -> None:
    assert set(before(ptx, WAIT, NAMES)) == set(found)


def test_statements_and_parameters_are_read() -> None:
    assert list(parse(kernel(before=ASSEMBLY_LOOP, after="", otherwise="")))[6:] == [
        Statement("mul.wide.s32", "%rd3, %r2, 4"),
        Statement("add.s64", "%rd4, %rd2, %rd3"),
        Statement(":", "waitLoop"),
        Statement("mbarrier.try_wait.parity.shared.b64", "complete, [%r9], %r10"),
        Statement("bra.uni", "waitLoop", predicated=True),
        Statement(WAIT, ""),
        Statement("bra.uni", "$L__BB0_3"),
        Statement(":", "$L__BB0_2"),
        Statement(":", "$L__BB0_3"),
        Statement("ret", ""),
    ]
    with pytest.raises(ValueError, match="ptx: expected 3 parameters, found 5"):
        before(kernel(), WAIT, ["starts"])
    with pytest.raises(ValueError, match=r"ptx: expected a label nowhere, found none"):
        before(kernel(before="bra nowhere;"), WAIT, NAMES)

    signature = {
        "weights.input": "*bf16",
        "weights.scale": "constexpr",
        "depth": "i32",
        "x": "tensordesc<bf16[16, 64]>",
    }
    assert parameter_names(signature) == ["weights.input", "", "x", "", "", "", ""]
