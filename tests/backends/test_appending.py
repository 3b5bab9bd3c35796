"""A prompt that comes to a cache: measured by the library, on several threads, row by row as a single token is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from alibi_attention import KVCache
from alibi_attention.backends import native
from alibi_attention.backends.appending import radii_of, readable
from alibi_attention.cache.common import mean_key
from alibi_attention.cache.steps import new_radii
from alibi_attention.horizon.summary import distances_from

pytestmark = pytest.mark.skipif(isinstance(native.load(), str), reason="the compiled kernels are missing")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def prompt(
    count: int, *, heads: int = 3, dim: int = 40, value_dim: int = 24, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Keys off the origin, heads beside each other in a token as a fused projection leaves them."""
    generator = torch.Generator().manual_seed(count)
    both = torch.randn(2, count, heads, dim + value_dim, generator=generator).add(0.5).to(dtype).transpose(1, 2)
    return both[..., :dim], both[..., dim:]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 64, 65, 1023, 1024, 3333])
@pytest.mark.usefixtures("threads")
def test_radii_of_a_prompt_are_those_of_its_tokens_one_by_one(dtype: torch.dtype, count: int) -> None:
    key, value = prompt(count, dtype=dtype)
    key[0, 1, count // 2, 3] = float("nan")
    value[1, 2, count - 1, 5] = float("-inf")
    center = torch.full((2, 3, 40), 0.25)
    assert readable(key, value, center)
    radii = new_radii(center, key, value)
    true = (key.double() - center.unsqueeze(2)).norm(dim=-1)
    true = torch.where(value.isfinite().all(-1) & true.isfinite(), true, torch.inf)
    assert int(true.isinf().sum()) == 2
    assert (radii >= true).all()
    assert (radii[true.isfinite()] <= true[true.isfinite()] * 1.002 + 1e-9).all()
    torch.testing.assert_close(radii, distances_from(center, key, value), rtol=1e-5, atol=0.0)
    for at in {0, count // 2, count - 1}:
        one = slice(at, at + 1)
        assert torch.equal(radii[:, :, one], radii_of(key[:, :, one], value[:, :, one], center))


@pytest.mark.parametrize("first", [0, 37, 1000])
@pytest.mark.usefixtures("threads")
def test_a_prompt_in_one_piece_and_in_two_is_known_alike(first: int) -> None:
    key, value = prompt(2500)
    whole, parts = KVCache(), KVCache()
    whole.append(key, value)
    parts.append(key[:, :, : first or 1], value[:, :, : first or 1])
    parts.append(key[:, :, first or 1 :], value[:, :, first or 1 :])
    # Its center is the mean of what came first; about the same center they know the same.
    assert whole._center is not None
    for cache in (whole, parts):
        assert cache._norms is not None
        assert cache._center is not None
        radii = radii_of(key, value, cache._center)
        most = torch.nn.functional.pad(radii, (0, -2500 % 64), value=-torch.inf).unflatten(2, (-1, 64)).amax(3)
        assert torch.equal(cache._norms[..., : most.shape[2]], most)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("spoilt", [False, True])
def test_the_mean_leaves_out_what_is_not_finite(dtype: torch.dtype, spoilt: bool) -> None:
    key, _ = prompt(1200, dtype=dtype)
    if spoilt:
        key[0, 1, 7, 3], key[1, 0, 1100, 0] = float("inf"), float("nan")
    finite = key.double().isfinite().all(-1, keepdim=True)
    want = torch.where(finite, key.double(), 0.0).sum(2) / finite.sum(2)
    torch.testing.assert_close(mean_key(key, None).double(), want, rtol=0.0, atol=1e-5)


def test_keys_whose_sum_overflows_are_never_passed_over() -> None:
    key = torch.full((1, 1, 4, 8), 3e38)
    cache = KVCache()
    cache.append(key, torch.ones(1, 1, 4, 8))
    # No bound can be had of such keys: they must never be passed over.
    assert cache._norms is not None
    assert cache._norms[0, 0, 0].isinf()
    out = cache.attend(torch.zeros(1, 1, 1, 8), torch.tensor([0.5]))
    torch.testing.assert_close(out, torch.ones(1, 1, 1, 8))
