"""The reading of machine code, on kernels whose properties are known."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="compiles with Triton")

import sample_kernels as kernels
from machine_code import ARCHITECTURES, Report, Variant, build, parse_gcn, parse_sass

TYPES = {"q": "*bf16", "k": "*bf16", "v": "*bf16", "o": "*bf16", "slopes": "*fp32", "bounds": "*i32", "scale": "fp32"}


def attend(architecture: str, bias: str, *, head_dim: int = 64, num_warps: int = 8, of: str = "bf16") -> Report:
    types = {name: f"*{of}" if kind == "*bf16" else kind for name, kind in TYPES.items()}
    constants = {"head_dim": head_dim, "block_m": 128, "block_n": 64, "bias": bias}
    options = {"num_warps": num_warps, "num_stages": 2}
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    aligned = {(at,): [["tt.divisibility", 16]] for at, kind in enumerate(types.values()) if kind.startswith("*")}
    variant = Variant(f"attend {bias}", kernels.attend_full_tiles, signature, constants, aligned, options, 128 * 64)
    return build(variant, architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_main_loop_is_found_and_its_bias_counted(architecture: str):
    none, in_tile, by_element = (attend(architecture, bias) for bias in ("none", "in tile", "by element"))
    assert not none.faults()
    assert none.tensor_ops > 0
    # Of both products, and of one loop: no other code of this kernel multiplies matrices but the pipeline's ends.
    matrices = sum(n for name, n in none.main_loop.items() if "MMA" in name or "mfma" in name)
    assert 0 < matrices <= none.tensor_ops
    # What it costs: about one instruction a score for a column in the tile, several for a distance.
    assert 0.0 <= in_tile.per_score - none.per_score < 1.2
    assert by_element.per_score - none.per_score > 2.0


def test_virtual_matrix_instructions_are_those_of_the_architecture():
    for architecture in ("sm_80", "sm_90", "sm_100"):
        assert attend(architecture, "none").virtual_ops > 0
    # A warp group is four warps: fewer cannot use Hopper's instructions.
    assert attend("sm_90", "none", num_warps=2).virtual_ops == 0


def test_too_much_is_seen():
    # 128 x 256 accumulators in the registers of 4 warps do not fit.
    wide = attend("sm_80", "none", head_dim=256, num_warps=4)
    assert wide.spills > 0
    assert any(fault.endswith("local memory in the loops over tiles") for fault in wide.faults())
    amd = attend("gfx942", "none", head_dim=256, num_warps=4, of="fp32")
    assert any("shared memory" in fault for fault in amd.faults())


def test_registers_put_aside_around_the_loops_are_no_fault_until_they_outweigh_a_tile():
    clean = attend("sm_80", "none")
    total = clean.main_loop.total()
    assert not clean.faults()
    # Each 4 bytes are put aside once and taken back once.
    assert not replace(clean, spills=2 * total).faults()
    assert replace(clean, spills=2 * total + 4).faults() == [f"spills {2 * total + 4}"]
    # More columns of tensor memory than there are: a kernel that does nothing.
    assert not replace(clean, columns=512).faults()
    assert replace(clean, columns=513).faults() == ["513 columns of tensor memory, there are 512"]
    # A kernel that multiplies nothing is short of no registers.
    nothing = Report(clean.variant, clean.architecture, 32, 4, 0, 0, 0, parse_sass("/*0000*/ EXIT ;"))
    assert nothing.faults() == ["spills 4"]


SASS = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
.L_x_4:
        /*0030*/                   SYNCS.PHASECHK P0, [R1] ;
        /*0040*/              @!P0 BRA `(.L_x_3) ;
.L_x_5:
        /*0050*/                   FADD R1, R2, R3 ;
        /*0060*/                   BRA.U UP0, `(.L_x_1) ;
.L_x_0:
        /*0070*/                   EXIT ;
.L_x_3:
        /*0080*/                   SYNCS.PHASECHK P0, [R1] ;
        /*0090*/              @!P0 BRA `(.L_x_3) ;
        /*00a0*/                   BRA `(.L_x_5) ;
.L_x_6:
        /*00b0*/                   BRA `(.L_x_6);
        /*00c0*/                   NOP;
"""


def test_loops_are_natural_ones():
    # The waiting loop lies behind the exit; it is a loop of its own and a part of the main one, not a loop around it.
    code = parse_sass(SASS)
    assert len(code.instructions) == 12
    assert sorted(map(len, code.loops)) == [2, 8]
    main = max(code.loops, key=len)
    assert {code.instructions[at].name for at in main} >= {"HMMA.16816.F32.BF16", "FADD", "BRA.U", "SYNCS.PHASECHK"}
    assert "EXIT" not in {code.instructions[at].name for at in main}


def test_local_memory_counts_in_loops_over_tiles_alone():
    # Outside of the loop, and in the loop that waits, it does not; in the loop that multiplies every access does.
    aside = SASS.replace("MOV R1, c[0x0][0x28]", "STL.64 [R1], R2").replace("FADD R1, R2, R3", "LDL.LU R1, [R1+0x4]")
    clean = attend("sm_80", "none")
    one, none = (replace(clean, code=parse_sass(text), spills=8) for text in (aside, SASS))
    assert one.faults() == ["1 accesses to local memory in the loops over tiles"]
    assert none.faults() == []


def test_what_is_put_aside_in_a_loop_makes_no_room_for_more(monkeypatch: pytest.MonkeyPatch):
    report = replace(attend("sm_80", "none"), spills=160)
    loop = Counter({"HMMA.16816": 8, "FADD": 92, "LDL": 20})
    monkeypatch.setattr(Report, "tile_loops", [loop])
    assert report.faults() == ["20 accesses to local memory in the loops over tiles"]
    loop["FADD"], loop["LDL"] = 62, 50
    assert report.faults() == ["spills 160", "50 accesses to local memory in the loops over tiles"]


def test_loads_are_to_be_fetched_ahead_where_stages_say_so(monkeypatch: pytest.MonkeyPatch):
    clean = attend("sm_80", "none")
    loop = Counter({"HMMA.16816": 8, "LDGSTS.E.BYPASS.128": 4, "LDG.E.U16": 2})
    monkeypatch.setattr(Report, "tile_loops", [loop])
    staged, plain = (
        replace(clean, variant=replace(clean.variant, options={**clean.variant.options, "num_stages": stages}))
        for stages in (2, 1)
    )
    assert staged.faults() == ["2 loads in the main loop that are not fetched ahead"]
    assert plain.faults() == []
    del loop["LDG.E.U16"]
    assert staged.faults() == []


def test_a_loop_over_a_tile_or_two_may_have_a_little_of_it(monkeypatch: pytest.MonkeyPatch):
    sweep, masked = (Counter({"HMMA.16816": 8, "FADD": number}) for number in (92, 152))
    report = replace(attend("sm_80", "none"))
    monkeypatch.setattr(Report, "tile_loops", [sweep, masked])
    assert report.main_loop is sweep
    masked["LDL.LU"] = 10
    assert report.local_accesses == 0
    masked["STL"] = 1
    assert report.local_accesses == 1
    sweep["LDL"] = 2
    assert report.local_accesses == 3


def test_amd_assembly_is_read():
    text = (
        "kernel:\n\ts_mov_b32 s0, 0\n.LBB0_1:  ; =>This Inner Loop\n\tv_mfma_f32_32x32x8_bf16 v[0:15], v0, v1, 0\n"
        "\ts_nop 3\n\ts_cbranch_scc1 .LBB0_1\n\ts_endpgm\n\t.section .rodata\n"
    )
    code = parse_gcn(text)
    assert [each.name for each in code.instructions][1] == "v_mfma_f32_32x32x8_bf16"
    assert code.loops == [frozenset({1, 2})]
