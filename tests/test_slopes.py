"""Preset slopes, length scaling and spans, each against values obtained some other way."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alibi_attention import alibi_slopes, scale_slopes
from alibi_attention.slopes import slope_spans

PAPER_8 = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]


def raises(message: str) -> pytest.RaisesExc[ValueError]:
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def float32(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu").to(torch.float32)


def root_of_two(exponent: Fraction) -> float:
    return math.exp(-math.log(2) * float(exponent))


# The two constructions found in released code, on exact exponents: the slope is 2 ** -exponent.


def floor_and_interleave(heads: int) -> list[Fraction]:
    """The paper's code: recurse from the nearest lower power of two into twice that power."""
    if heads.bit_count() == 1:
        return [Fraction(8 * (index + 1), heads) for index in range(heads)]
    lower = 2 ** math.floor(math.log2(heads))
    between = floor_and_interleave(2 * lower)[::2]
    return floor_and_interleave(lower) + between[: heads - lower]


def ceil_and_stride(heads: int) -> list[Fraction]:
    """MPT's code: the next power of two, its even places before its odd ones, cut to length."""
    upper = 2 ** math.ceil(math.log2(heads))
    every = [Fraction(8, upper) * place for place in range(1, upper + 1)]
    return every if upper == heads else (every[1::2] + every[0::2])[:heads]


# Geometric


def test_eight_heads_are_the_papers_exactly():
    assert alibi_slopes(8).tolist() == PAPER_8


def test_sixteen_heads_go_down_by_the_square_root_of_two():
    slopes = alibi_slopes(16)
    assert slopes[1::2].tolist() == PAPER_8
    assert torch.equal(slopes[0::2], float32([value * math.sqrt(2) for value in PAPER_8]))


@settings(deadline=None)
@given(st.integers(1, 300))
def test_geometric_is_the_formula_at_every_head_count(heads: int):
    expected = float32([root_of_two(Fraction(8 * h, heads)) for h in range(1, heads + 1)])
    torch.testing.assert_close(alibi_slopes(heads), expected, rtol=2**-23, atol=0)


def test_one_head_takes_the_flattest_slope():
    assert alibi_slopes(1).tolist() == [2**-8]
    assert alibi_slopes(1, "interleaved").tolist() == [2**-8]


@settings(deadline=None)
@given(st.integers(1, 128), st.floats(0.25, 64))
def test_bias_max_is_the_exponent_of_the_flattest_head(heads: int, bias_max: float):
    slopes = alibi_slopes(heads, bias_max=bias_max).double()
    assert slopes[-1].item() == pytest.approx(2.0**-bias_max, rel=2**-23)
    steps = slopes.log2().diff().tolist()
    assert steps == pytest.approx([-bias_max / heads] * (heads - 1), abs=1e-6)


def test_bias_max_16_squares_the_papers_slopes():
    assert alibi_slopes(8, bias_max=16.0).tolist() == [value**2 for value in PAPER_8]
    assert alibi_slopes(8, "interleaved", 16).tolist() == [value**2 for value in PAPER_8]


# Interleaved


@pytest.mark.parametrize("construction", [floor_and_interleave, ceil_and_stride])
def test_interleaved_is_what_released_code_computes_for_every_head_count(construction):
    for heads in range(1, 257):
        expected = float32([root_of_two(exponent) for exponent in construction(heads)])
        torch.testing.assert_close(
            alibi_slopes(heads, "interleaved"),
            expected,
            rtol=2**-23,
            atol=0,
            msg=lambda text, heads=heads: f"{heads} heads: {text}",
        )


def test_both_released_constructions_agree_exactly():
    for heads in range(1, 257):
        assert floor_and_interleave(heads) == ceil_and_stride(heads), heads


@pytest.mark.parametrize("power", [1, 2, 4, 8, 16, 32, 64, 128, 256])
def test_schemes_agree_at_powers_of_two(power: int):
    assert torch.equal(alibi_slopes(power, "interleaved"), alibi_slopes(power))


def test_schemes_differ_elsewhere():
    for heads in set(range(3, 129)) - {4, 8, 16, 32, 64, 128}:
        assert not torch.equal(alibi_slopes(heads, "interleaved"), alibi_slopes(heads)), heads


# Nine digits of 2 ** -exponent, from decimal arithmetic.
LITERAL = {
    3: {0: 0.0625, 1: 0.00390625, 2: 0.25},
    6: {0: 0.25, 1: 0.0625, 2: 0.015625, 3: 0.00390625, 4: 0.5, 5: 0.125},
    # 8 of 8, then the 1st, 3rd, 5th and 7th of 16: 2^-0.5, 2^-1.5, 2^-2.5, 2^-3.5
    12: {0: 0.5, 7: 0.00390625, 8: 0.707106781, 9: 0.353553391, 10: 0.176776695, 11: 0.0883883476},
    # 32 of 32, then eight of 64: 2^-(1/8), 2^-(3/8), ..., 2^-(15/8)
    40: {0: 0.840896415, 3: 0.5, 31: 0.00390625, 32: 0.917004043, 33: 0.771105413, 39: 0.272626933},
    # 64 of 64, then seven of 128: 2^-(1/16), ..., 2^-(13/16); the head count of Falcon-7B
    71: {0: 0.917004043, 7: 0.5, 63: 0.00390625, 64: 0.957603281, 65: 0.878126080, 70: 0.569394317},
    # 64 of 64, then 48 of 128: 2^-(1/16), ..., 2^-(95/16); BLOOM-176B
    112: {0: 0.917004043, 7: 0.5, 63: 0.00390625, 64: 0.957603281, 72: 0.478801640, 111: 0.0163167779},
}


@pytest.mark.parametrize("heads", LITERAL)
def test_interleaved_known_values(heads: int):
    slopes = alibi_slopes(heads, "interleaved")
    assert slopes.shape == (heads,)
    for head, expected in LITERAL[heads].items():
        assert slopes[head].item() == pytest.approx(expected, rel=2e-9 + 2**-24), head


# What comes back


@pytest.mark.parametrize("scheme", ["geometric", "interleaved"])
def test_slopes_are_float32_whatever_the_default_dtype(scheme):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        slopes = alibi_slopes(12, scheme)
    finally:
        torch.set_default_dtype(before)
    assert slopes.dtype == torch.float32
    assert not slopes.requires_grad


@pytest.mark.parametrize("scheme", ["geometric", "interleaved"])
def test_slopes_are_true_values_under_a_meta_default_device(scheme):
    expected = alibi_slopes(12, scheme)
    with torch.device("meta"):
        slopes = alibi_slopes(12, scheme)
    assert slopes.device.type == "cpu"
    assert torch.equal(slopes, expected)


@pytest.mark.parametrize(
    ("num_heads", "shown"), [(0, "0"), (-4, "-4"), (8.0, "8.0"), (True, "True"), ("8", "'8'"), (None, "None")]
)
def test_num_heads_is_refused(num_heads, shown):
    with raises(f"num_heads: expected an integer of at least 1, got {shown}"):
        alibi_slopes(num_heads)


@pytest.mark.parametrize(
    ("bias_max", "shown"),
    [(0.0, "0.0"), (-8.0, "-8.0"), (math.inf, "inf"), (math.nan, "nan"), (0, "0"), (127, "127"), ("8", "'8'")],
)
def test_bias_max_is_refused(bias_max, shown):
    with raises(f"bias_max: expected a number above 0 and at most 126, got {shown}; the paper uses 8.0"):
        alibi_slopes(8, bias_max=bias_max)


def test_scheme_is_refused():
    with raises("scheme: expected one of ('geometric', 'interleaved'), got 'bloom'"):
        alibi_slopes(8, "bloom")


# Length scaling


@pytest.mark.parametrize(("length", "divisor"), [(512, 0.5), (1024, 1.0), (4096, 4.0)])
def test_linear_divides_whatever_the_length(length, divisor):
    scaled = scale_slopes(alibi_slopes(8), "linear", train_length=1024, length=length)
    assert scaled.tolist() == [value / divisor for value in PAPER_8]


@pytest.mark.parametrize(("length", "divisor"), [(512, 1.0), (1024, 1.0), (4096, 4.0)])
def test_dynamic_leaves_shorter_inputs_alone(length, divisor):
    scaled = scale_slopes(alibi_slopes(8), "dynamic", train_length=1024, length=length)
    assert scaled.tolist() == [value / divisor for value in PAPER_8]


@settings(deadline=None)
@given(st.integers(2, 200), st.integers(1, 64))
def test_ntk_is_the_published_rule_for_geometric_slopes(heads: int, ratio: int):
    scaled = scale_slopes(alibi_slopes(heads), "ntk", train_length=100, length=100 * ratio)
    expected = [2.0 ** (-8 * h / heads) * ratio ** (-(h - 1) / (heads - 1)) for h in range(1, heads + 1)]
    # The rule is applied to slopes already rounded to float32, hence 2^-22 for two roundings.
    torch.testing.assert_close(scaled, float32(expected), rtol=2**-22, atol=0)


def test_ntk_by_hand():
    scaled = scale_slopes(torch.tensor([1.0, 0.5, 0.25]), "ntk", train_length=10, length=160)
    torch.testing.assert_close(scaled, torch.tensor([1.0, 0.125, 0.015625]), rtol=2**-23, atol=0)


@settings(deadline=None)
@given(st.integers(2, 128), st.sampled_from(["geometric", "interleaved"]), st.integers(2, 50))
def test_ntk_keeps_the_steepest_and_divides_the_flattest_in_full(heads: int, scheme, ratio: int):
    slopes = alibi_slopes(heads, scheme)
    scaled = scale_slopes(slopes, "ntk", train_length=1, length=ratio)
    steepest, flattest = slopes.argmax(), slopes.argmin()
    assert scaled[steepest] == slopes[steepest]
    torch.testing.assert_close(scaled[flattest], slopes[flattest] / ratio, rtol=2**-23, atol=0)


def test_ntk_leaves_shorter_inputs_alone():
    slopes = alibi_slopes(12, "interleaved")
    assert torch.equal(scale_slopes(slopes, "ntk", train_length=1024, length=512), slopes)


@settings(deadline=None)
@given(st.permutations(range(12)))
def test_scaling_follows_the_slope_and_not_its_place(order: list[int]):
    slopes = alibi_slopes(12)
    for method in ("linear", "dynamic", "ntk"):
        straight = scale_slopes(slopes, method, train_length=256, length=1000)
        assert torch.equal(scale_slopes(slopes[order], method, train_length=256, length=1000), straight[order])


@pytest.mark.parametrize("method", ["linear", "dynamic", "ntk"])
@pytest.mark.parametrize("slopes", [[0.25], [0.5, 0.5, 0.5]], ids=["one head", "equal heads"])
def test_where_no_head_is_flatter_than_another_all_are_divided(slopes, method):
    scaled = scale_slopes(torch.tensor(slopes), method, train_length=256, length=1024)
    assert scaled.tolist() == [value / 4 for value in slopes]


@pytest.mark.parametrize("method", ["linear", "dynamic", "ntk"])
def test_each_batch_row_is_scaled_by_itself(method):
    rows = torch.stack([alibi_slopes(6), alibi_slopes(6, "interleaved") / 3, torch.full((6,), 0.1)])
    together = scale_slopes(rows, method, train_length=128, length=900)
    assert together.shape == rows.shape
    for row, scaled in zip(rows, together, strict=True):
        assert torch.equal(scaled, scale_slopes(row, method, train_length=128, length=900))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["linear", "dynamic", "ntk"])
def test_scaling_keeps_the_dtype(method, dtype):
    scaled = scale_slopes(alibi_slopes(8).to(dtype), method, train_length=256, length=1024)
    assert scaled.dtype == dtype
    assert scaled[-1].item() == 2**-10


@pytest.mark.parametrize("method", ["linear", "dynamic"])
def test_scaling_passes_gradcheck(method):
    slopes = alibi_slopes(5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda leaf: scale_slopes(leaf, method, train_length=256, length=1000), (slopes,))


@pytest.mark.parametrize("method", ["linear", "dynamic", "ntk"])
def test_slopes_without_values_are_scaled(method):
    """On ``meta`` there is nothing to refuse, and nothing of the host may get in."""
    scaled = scale_slopes(torch.empty(8, device="meta"), method, train_length=256, length=1024)
    assert (scaled.device.type, scaled.shape, scaled.dtype) == ("meta", (8,), torch.float32)


@pytest.mark.parametrize("heads", [1, 5])
def test_ntk_gradient_holds_the_exponents_still(heads: int):
    slopes = alibi_slopes(heads).requires_grad_()
    scaled = scale_slopes(slopes, "ntk", train_length=256, length=1024)
    (gradient,) = torch.autograd.grad(scaled.sum(), slopes)
    torch.testing.assert_close(gradient, (scaled / slopes).detach(), rtol=2**-22, atol=0)


def test_scaling_does_not_write_into_its_argument():
    slopes = alibi_slopes(8)
    for method in ("linear", "dynamic", "ntk"):
        scale_slopes(slopes, method, train_length=1, length=8)
    assert torch.equal(slopes, alibi_slopes(8))


def test_scaling_method_is_refused():
    with raises("method: expected one of ('linear', 'dynamic', 'ntk'), got 'yarn'"):
        scale_slopes(alibi_slopes(8), "yarn", train_length=256, length=512)


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), (-1, "-1"), (2.5, "2.5"), (True, "True")])
@pytest.mark.parametrize("name", ["train_length", "length"])
def test_scaling_lengths_are_refused(name, value, shown):
    lengths = {"train_length": 256, "length": 512, name: value}
    with raises(f"{name}: expected an integer of at least 1, got {shown}"):
        scale_slopes(alibi_slopes(8), "linear", **lengths)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
@pytest.mark.parametrize("method", ["linear", "dynamic", "ntk"])
def test_scaling_no_heads_is_refused(method, shape):
    with raises(f"slopes: expected (..., num_heads) with at least one head, got {shape}"):
        scale_slopes(torch.zeros(shape), method, train_length=256, length=512)


@pytest.mark.parametrize(("values", "minimum"), [([0.5, 0.0], "0"), ([0.5, -0.25], "-0.25")])
def test_ntk_refuses_slopes_that_do_not_fall(values, minimum):
    with raises(
        "slopes: method 'ntk' places heads on the logarithm of their slopes and needs them all positive, "
        f"got a minimum of {minimum}; use 'linear' or 'dynamic'"
    ):
        scale_slopes(torch.tensor(values), "ntk", train_length=256, length=512)


@pytest.mark.parametrize("method", ["linear", "dynamic"])
def test_other_methods_take_slopes_of_any_sign(method):
    scaled = scale_slopes(torch.tensor([0.5, 0.0, -0.5]), method, train_length=256, length=512)
    assert scaled.tolist() == [0.25, 0.0, -0.25]


# Spans


def test_spans_of_the_papers_slopes():
    spans = slope_spans(alibi_slopes(8))
    assert spans.dtype == torch.float64
    assert spans.tolist() == [[1 / m, 5 / m, 10 / m] for m in PAPER_8]
    assert spans[0].tolist() == [2.0, 10.0, 20.0]
    assert spans[7].tolist() == [256.0, 1280.0, 2560.0]


def test_spans_of_other_levels():
    assert slope_spans(torch.tensor([0.25]), nats=(0.5, 40)).tolist() == [[2.0, 160.0]]
    assert slope_spans(torch.tensor([0.25, 0.5]), nats=()).shape == (2, 0)


def test_slopes_that_do_not_fall_span_everything():
    spans = slope_spans(torch.tensor([0.0, -0.5, 0.5], requires_grad=True))
    assert spans[:2].isinf().all()
    assert (spans[:2] > 0).all()
    assert spans[2].tolist() == [2.0, 10.0, 20.0]
    assert not spans.requires_grad


def test_spans_need_one_dimension():
    with raises("slopes: expected (num_heads,), got (2, 8)"):
        slope_spans(torch.zeros(2, 8))
