"""The bias matrix, against the worked example, the definition and exact integers."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alibi_attention import alibi_slopes, build_alibi_bias
from alibi_attention.bias import relative_bias

NO = -math.inf


def raises(message: str) -> pytest.RaisesExc[ValueError]:
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_worked_example():
    bias = build_alibi_bias(8, 4)
    assert bias.dtype == torch.float32
    assert bias.shape == (8, 4, 4)
    assert bias[0].tolist() == [
        [0.0, NO, NO, NO],
        [-0.5, 0.0, NO, NO],
        [-1.0, -0.5, 0.0, NO],
        [-1.5, -1.0, -0.5, 0.0],
    ]
    assert bias[7, 3].tolist() == [-3 / 256, -2 / 256, -1 / 256, 0.0]


def test_the_diagonal_is_positive_zero():
    bias = build_alibi_bias(8, 4)
    assert not bias.diagonal(dim1=1, dim2=2).signbit().any()


def test_bidirectional_is_symmetric():
    bias = build_alibi_bias(8, 4, is_causal=False)
    assert bias[1].tolist() == [
        [0.0, -0.25, -0.5, -0.75],
        [-0.25, 0.0, -0.25, -0.5],
        [-0.5, -0.25, 0.0, -0.25],
        [-0.75, -0.5, -0.25, 0.0],
    ]
    assert torch.equal(bias, bias.mT)


def test_fewer_queries_than_keys_stand_at_the_end():
    assert build_alibi_bias(8, 2, key_len=5)[0].tolist() == [
        [-1.5, -1.0, -0.5, 0.0, NO],
        [-2.0, -1.5, -1.0, -0.5, 0.0],
    ]
    assert torch.equal(build_alibi_bias(8, 2, key_len=5), build_alibi_bias(8, 5)[:, 3:])


def test_more_queries_than_keys_leave_the_first_ones_nothing():
    assert build_alibi_bias(8, 5, key_len=2)[0].tolist() == [
        [NO, NO],
        [NO, NO],
        [NO, NO],
        [0.0, NO],
        [-0.5, 0.0],
    ]


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (0, [[0.0, NO, NO], [-0.5, 0.0, NO]]),
        (2, [[-1.0, -0.5, 0.0], [-1.5, -1.0, -0.5]]),
        (10, [[-5.0, -4.5, -4.0], [-5.5, -5.0, -4.5]]),
        (-1, [[NO, NO, NO], [0.0, NO, NO]]),
    ],
)
def test_query_offset(offset, expected):
    assert build_alibi_bias(8, 2, key_len=3, query_offset=offset)[0].tolist() == expected


@settings(deadline=None)
@given(
    heads=st.integers(1, 12),
    q_len=st.integers(1, 9),
    k_len=st.integers(1, 9),
    offset=st.none() | st.integers(-12, 12),
    is_causal=st.booleans(),
)
def test_every_element_is_the_definition(heads, q_len, k_len, offset, is_causal):
    bias = build_alibi_bias(heads, q_len, key_len=k_len, query_offset=offset, is_causal=is_causal)
    assert bias.shape == (heads, q_len, k_len)
    first = k_len - q_len if offset is None else offset
    for h, slope in enumerate(alibi_slopes(heads).tolist()):
        for i in range(q_len):
            for j in range(k_len):
                # A float32 times a small integer is exact in Python's float64; float32 rounds it once.
                expected = torch.tensor(-slope * abs(i + first - j), dtype=torch.float32).item()
                if is_causal and j > i + first:
                    expected = NO
                assert bias[h, i, j].item() == expected, (h, i, j)


def test_slopes_of_your_own():
    slopes = torch.tensor([1.0, -2.0, 0.0])
    bias = build_alibi_bias(3, 2, slopes=slopes)
    assert bias.tolist() == [[[0.0, NO], [-1.0, 0.0]], [[0.0, NO], [2.0, 0.0]], [[0.0, NO], [0.0, 0.0]]]
    assert slopes.tolist() == [1.0, -2.0, 0.0]


def test_interleaved_slopes():
    slopes = alibi_slopes(12, "interleaved")
    bias = build_alibi_bias(12, 3, slopes=slopes)
    assert torch.equal(bias[:, 2, 0], -2 * slopes)


def test_the_gradient_of_slopes_is_minus_the_distance():
    slopes = alibi_slopes(4).requires_grad_()
    bias = build_alibi_bias(4, 5, slopes=slopes)
    (gradient,) = torch.autograd.grad(bias[:, 4].sum(), slopes)
    assert gradient.tolist() == [-10.0] * 4


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_dtype_is_float32_rounded_once(dtype):
    # Twelve heads have slopes that no short dtype holds, so rounding them before the product would show.
    single = build_alibi_bias(12, 600)
    bias = build_alibi_bias(12, 600, dtype)
    assert bias.dtype == dtype
    assert torch.equal(bias, single.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_the_slopes_first_would_show(dtype):
    # Guards the test above: it must be able to tell one rounding from two.
    early = build_alibi_bias(12, 600, slopes=alibi_slopes(12).to(dtype))
    assert not torch.equal(build_alibi_bias(12, 600, dtype), early.to(dtype))


def test_float64_is_formed_in_float64():
    slopes = torch.tensor([1 / 3], dtype=torch.float64)
    bias = build_alibi_bias(1, 50, torch.float64, slopes=slopes)
    assert bias[0, 49].tolist() == [-(1 / 3) * (49 - j) for j in range(49)] + [0.0]


def test_short_slopes_are_widened_not_the_result():
    slopes = alibi_slopes(8).bfloat16()
    assert torch.equal(build_alibi_bias(8, 1000, slopes=slopes), build_alibi_bias(8, 1000))


@pytest.mark.parametrize("position", [2**20, 2**31, 2**40])
def test_far_positions_give_the_same_bias_as_near_ones(position):
    slopes = alibi_slopes(12)
    near = torch.arange(300)
    bias = relative_bias(slopes, near + position, near + position)
    assert torch.equal(bias, relative_bias(slopes, near, near))
    assert torch.equal(bias.tril(), build_alibi_bias(12, 300).tril().nan_to_num(neginf=0.0))


@settings(deadline=None)
@given(st.integers(0, 2**24), st.integers(0, 2**20), st.integers(1, 128))
def test_long_distances_are_exact_but_for_one_rounding(position: int, distance: int, heads: int):
    slopes = alibi_slopes(heads)
    bias = relative_bias(slopes, torch.tensor([position + distance]), torch.tensor([position]))
    for slope, value in zip(slopes.tolist(), bias.flatten().tolist(), strict=True):
        exact = -Fraction(slope) * distance
        assert abs(Fraction(value) - exact) <= abs(exact) / 2**24


def test_a_million_tokens_apart_at_power_of_two_slopes():
    bias = relative_bias(alibi_slopes(8), torch.tensor([2**20, 2**20 - 1]), torch.tensor([0]))
    assert bias[:, 0, 0].tolist() == [-(2.0 ** (20 - h)) for h in range(1, 9)]
    assert bias[:, 1, 0].tolist() == [-(2.0**-h) * (2**20 - 1) for h in range(1, 9)]


def test_relative_bias_of_batched_slopes():
    slopes = torch.stack([alibi_slopes(4), alibi_slopes(4) / 2])
    bias = relative_bias(slopes, torch.arange(3), torch.arange(5))
    assert bias.shape == (2, 4, 3, 5)
    assert bias[1, 0].tolist() == (bias[0, 0] / 2).tolist()
    assert bias[0, 0, 1].tolist() == [-0.25, 0.0, -0.25, -0.5, -0.75]


# Devices


def test_device_is_that_of_the_slopes_or_the_one_asked_for():
    assert build_alibi_bias(4, 3, slopes=torch.empty(4, device="meta")).device.type == "meta"
    assert build_alibi_bias(4, 3, device="meta").shape == (4, 3, 3)
    assert build_alibi_bias(4, 3, device="meta").device.type == "meta"


def test_a_meta_default_device_leaves_the_values_true():
    expected = build_alibi_bias(4, 3)
    with torch.device("meta"):
        bias = build_alibi_bias(4, 3)
    assert bias.device.type == "cpu"
    assert torch.equal(bias, expected)


# Errors


@pytest.mark.parametrize("value", [0, -3, 2.5, True])
def test_lengths_are_refused(value):
    with raises(f"seq_len: expected an integer of at least 1, got {value}"):
        build_alibi_bias(8, value)
    with raises(f"key_len: expected an integer of at least 1, got {value}"):
        build_alibi_bias(8, 4, key_len=value)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_dtype_is_refused(dtype):
    with raises(f"dtype: expected a floating-point dtype, got {dtype}"):
        build_alibi_bias(8, 4, dtype)


@pytest.mark.parametrize("shape", [(), (7,), (1, 8), (8, 1)])
def test_slopes_of_another_shape_are_refused(shape):
    with raises(f"slopes: expected shape (8,), got {shape}"):
        build_alibi_bias(8, 4, slopes=torch.ones(shape))


def test_num_heads_is_refused_as_in_alibi_slopes():
    with raises("num_heads: expected an integer of at least 1, got 0"):
        build_alibi_bias(0, 4)
