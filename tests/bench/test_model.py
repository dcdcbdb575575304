"""What the model reads from compiled code, without compiling anything."""

import pytest

from bench import model

SASS = """
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   STG.E desc[UR4][R2.64], R4 ;
        /*0030*/                   LDS.64 R4, [R2] ;
        /*0040*/                   SHFL.BFLY PT, R5, R4, 0x10, 0x1f ;
        /*0050*/                   MUFU.EX2 R7, R7 ;
        /*0060*/                   MUFU.RCP R7, R7 ;
        /*0070*/               @P1 BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0080*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0090*/              @UP0 UIADD3 UR4, UR4, 0x1, URZ ;
        /*00a0*/                   EXIT ;
        /*00b0*/                   NOP;
"""


def test_instructions_are_counted_by_kind_and_padding_is_not():
    assert model.instruction_counts(SASS) == {
        "instructions": 11,
        "global memory": 2,
        "shared memory": 2,
        "exponentials": 1,
        "other special": 1,
        "tensor cores": 1,
        "barriers": 1,
    }


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "held"),
    [
        (32, 0, 4, 64),  # the most that an SM holds
        (32, 0, 1, 32),  # blocks run out first
        (64, 0, 8, 32),  # registers
        (65, 0, 8, 24),  # which come in steps of 8 a thread
        (32, 98304, 8, 16),  # shared memory
    ],
)
def test_warps_are_bounded_by_what_runs_out_first(registers, shared, warps, held):
    assert model.warps_on_a_multiprocessor(registers, shared, warps) == held


def test_every_kind_of_kernel_the_tests_compile_can_be_described():
    variants = model.ahead_of_time().VARIANTS
    assert {"nms", "pairwise_tiou"} <= set(variants)


def test_the_tables_say_that_nothing_was_measured_and_show_failures():
    usage = dict.fromkeys(("registers", "stack", "spills", "shared", "warps", "warps_on_a_multiprocessor"), 8)
    kernels = {"nms": {**usage, **model.instruction_counts(SASS)}, "decode": {"failed": "the compiler crashed"}}
    cost = {"op": "nms", "case": "B=64", "bytes": 2_000_000, "operations": 1_000_000, "matrix_operations": 0}
    text = model.text_of({"what": "MODEL, not a measurement", "kernels": kernels, "costs": [cost]})
    assert text.startswith("MODEL, not a measurement")
    assert "failed: the compiler crashed" in text
    assert text.splitlines()[-1].split() == ["nms", "B=64", "2.00", "1.0", "0.0", "0.50"]
