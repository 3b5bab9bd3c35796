"""Every refusal, word by word: the argument, what was expected, what came, and the remedy."""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alibi_attention import (
    ALiBiAttention,
    HorizonCache,
    KVCache,
    alibi_attention,
    alibi_slopes,
    certify,
    explain_backends,
    merge_attention,
    scale_slopes,
    weight_decay_groups,
)
from alibi_attention.slopes import slope_spans


def _tensors() -> dict[str, Any]:
    return {name: torch.randn(2, 4, 6, 8) for name in ("query", "key", "value")}


def _zeros(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(shape, **options)


_INTS = {"dtype": torch.int32}
_HOLES = torch.tensor([[True, True, False, True, True, True]] * 2)

CASES = [
    (
        {"query": _zeros(4, 6, 8)},
        "query: expected 4 dimensions (batch, num_heads, seq_len, head_dim), got shape (4, 6, 8); "
        "for (batch, seq_len, num_heads, head_dim) memory pass tensor.transpose(1, 2)",
    ),
    (
        {"key": _zeros(2, 4, 0, 8)},
        "key: expected at least one element along seq_len, got shape (2, 4, 0, 8); "
        "leave out the call where there is nothing to attend",
    ),
    (
        {"value": _zeros(2, 4, 6, 8, dtype=torch.int64)},
        "value: expected float64, float32, bfloat16 or float16, got torch.int64; "
        "convert it with tensor.to(torch.float32)",
    ),
    (
        {"key": _zeros(2, 4, 6, 8, dtype=torch.float64)},
        "key: expected the dtype of query, torch.float32, got torch.float64; "
        "convert one of them, or run under torch.autocast",
    ),
    (
        {"value": _zeros(1, 4, 6, 8)},
        "value: expected the batch size of query, 2, got shape (1, 4, 6, 8); expand it to the batch",
    ),
    (
        {"key": _zeros(2, 4, 6, 8, device="meta")},
        "key: expected the device of query, cpu, got meta; move it with tensor.to('cpu')",
    ),
    (
        {"key": _zeros(2, 4, 6, 7)},
        "key: expected the head_dim of query, 8, got shape (2, 4, 6, 7); "
        "query and key meet in a dot product (value may have another size)",
    ),
    (
        {"value": _zeros(2, 4, 5, 8)},
        "value: expected the heads and length of key, (4, 6), got shape (2, 4, 5, 8); every key needs its value",
    ),
    (
        {"key": _zeros(2, 3, 6, 8), "value": _zeros(2, 3, 6, 8)},
        "key: expected a number of heads that divides query's 4, got 3; "
        "grouped-query attention shares each key head among equally many query heads",
    ),
    (
        {"slopes": _zeros(3)},
        "slopes: expected shape (4,) or (2, 4), got (3,); one slope for each query head",
    ),
    (
        {"slopes": _zeros(4, dtype=torch.bfloat16)},
        "slopes: expected float32 (or float64), got torch.bfloat16; 16-bit slopes are rounded by up to 0.4%, "
        "whole nats at long range: keep them in float32",
    ),
    (
        {"scale": math.nan},
        "scale: expected a number between -2e+38 and 2e+38, got nan; the default is 1 / sqrt(head_dim)",
    ),
    (
        {"scale": math.inf},
        "scale: expected a number between -2e+38 and 2e+38, got inf; the default is 1 / sqrt(head_dim)",
    ),
    ({"dropout_p": 1.0}, "dropout_p: expected a probability in [0, 1), got 1.0; 0.0 drops nothing"),
    ({"dropout_p": math.nan}, "dropout_p: expected a probability in [0, 1), got nan; 0.0 drops nothing"),
    (
        {"tolerance": -1e-3},
        "tolerance: expected a share of softmax mass in [0, 1), got -0.001; "
        "None skips at rounding level, 0 computes every tile",
    ),
    (
        {"window": (-1, 0)},
        "window: expected (left, right) in tokens, each at least 0 or None for unbounded, got (-1, 0); "
        "(n, 0) is the n tokens before each and itself",
    ),
    (
        {"window": (4,)},
        "window: expected (left, right) in tokens, each at least 0 or None for unbounded, got (4,); "
        "(n, 0) is the n tokens before each and itself",
    ),
    (
        {"query_offset": _zeros(3, dtype=torch.int64)},
        "query_offset: expected an int or a (2,) integer tensor, one for each batch element, "
        "got shape (3,) of torch.int64",
    ),
    (
        {"query_offset": _zeros(2)},
        "query_offset: expected an int or a (2,) integer tensor, one for each batch element, "
        "got shape (2,) of torch.float32",
    ),
    (
        {"query_offset": _zeros(2, dtype=torch.int64, device="meta")},
        "query_offset: expected the device of query, cpu, got meta; move it there",
    ),
    (
        {"query_offset": torch.tensor([0, -(2**63)])},
        "query_offset: expected at most 2^40 either way, got [0, -9223372036854775808]; distances count from 0",
    ),
    (
        {"query_offset": 1.5},
        "query_offset: expected an int or a (2,) integer tensor, one for each batch element, got 1.5",
    ),
    (
        {"key_mask": _zeros(2, 6)},
        "key_mask: expected bool of shape (2, 6), True where a key takes part, "
        "got torch.float32 of shape (2, 6); a 0/1 mask becomes one with mask.bool(), "
        "nn.MultiheadAttention's key_padding_mask with ~mask",
    ),
    (
        {"key_mask": _zeros(2, 6, dtype=torch.bool, device="meta")},
        "key_mask: expected the device of query, cpu, got meta; move it there",
    ),
    (
        {"key_mask": _HOLES},
        "key_mask: expected the True keys of each row to be contiguous (left or right padding), "
        "got holes in batch rows [0, 1]; drop the masked keys from the tensors, "
        "or pack the sequences with cu_seqlens",
    ),
    (
        {"cu_seqlens": _zeros(2, **_INTS)},
        "cu_seqlens: expected packed sequences in one row of batch 1, got a batch of 2; "
        "concatenate the sequences along seq_len",
    ),
    (
        {"cu_seqlens_k": _zeros(2, **_INTS)},
        "cu_seqlens_k: expected together with cu_seqlens, got it alone; give cu_seqlens for the queries",
    ),
    (
        {"cu_seqlens": _zeros(2, **_INTS), "query_offset": 0},
        "cu_seqlens: expected without query_offset and key_mask, got them together; "
        "each packed sequence is aligned at its own end and holds no padding",
    ),
    ({"backend": "fast"}, "backend: expected None or one of "),
]


@pytest.mark.parametrize(("changes", "message"), CASES, ids=[message[:40] for _, message in CASES])
def test_operator_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)) as caught:
        alibi_attention(**{**_tensors(), **changes})
    if not message.endswith("one of "):
        assert str(caught.value) == message


PACKED = [
    ([1, 6], None, "cu_seqlens: expected values that rise from 0 to the query length 6, got [1, 6]"),
    ([0, 4], None, "cu_seqlens: expected values that rise from 0 to the query length 6, got [0, 4]"),
    ([0, 5, 3, 6], None, "cu_seqlens: expected values that rise from 0 to the query length 6, got [0, 5, 3, 6]"),
    ([0, 3, 6], [0, 2, 5], "cu_seqlens_k: expected values that rise from 0 to the key length 6, got [0, 2, 5]"),
]


@pytest.mark.parametrize(("queries", "keys", "message"), PACKED)
def test_packed_bounds_are_refused(queries: list[int], keys: list[int] | None, message: str) -> None:
    tensors = {name: tensor[:1] for name, tensor in _tensors().items()}
    bounds = {"cu_seqlens": torch.tensor(queries, dtype=torch.int32)}
    if keys:
        bounds["cu_seqlens_k"] = torch.tensor(keys, dtype=torch.int32)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        alibi_attention(**tensors, **bounds)
    assert str(caught.value) == message + "; they are cumulative lengths, torch.cumsum of the lengths after a 0"


def test_packed_shapes_are_refused() -> None:
    tensors = {name: tensor[:1] for name, tensor in _tensors().items()}
    with pytest.raises(ValueError, match="cu_seqlens: expected int32 of shape \\(sequences \\+ 1,\\)"):
        alibi_attention(**tensors, cu_seqlens=torch.tensor([0, 6]))
    with pytest.raises(ValueError, match="cu_seqlens_k: expected as many sequences as cu_seqlens, 1, got 2"):
        alibi_attention(
            **tensors,
            cu_seqlens=torch.tensor([0, 6], dtype=torch.int32),
            cu_seqlens_k=torch.tensor([0, 3, 6], dtype=torch.int32),
        )
    tensors["key"] = tensors["value"] = torch.randn(1, 4, 9, 8)
    with pytest.raises(ValueError, match="cu_seqlens_k: expected where queries and keys differ in length"):
        alibi_attention(**tensors, cu_seqlens=torch.tensor([0, 6], dtype=torch.int32))


def test_a_refusal_lists_every_backend_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from alibi_attention import dispatch

    class Unwilling:
        name = "unwilling"

        def why_not(self, problem: Any) -> str:
            return f"takes no head_dim of {problem.head_dim}"

    tensors = _tensors()
    monkeypatch.setattr(dispatch, "_BACKENDS", {"unwilling": Unwilling(), **dispatch._BACKENDS})
    with pytest.raises(NotImplementedError) as caught:
        alibi_attention(**tensors, backend="unwilling")
    lines = str(caught.value).splitlines()
    assert lines[0] == "backend 'unwilling' cannot run this call:"
    assert lines[1] == "  unwilling: takes no head_dim of 8"
    assert "  blocked: can run it" in lines
    assert "  reference: can run it" in lines
    assert explain_backends(**tensors)["unwilling"] == "takes no head_dim of 8"
    # None passes over the one that cannot.
    assert alibi_attention(**tensors).shape == (2, 4, 6, 8)


MODULES = [
    ({"embed_dim": 10}, "embed_dim: expected a multiple of num_heads, 4, got 10; the nearest are 8 and 12"),
    ({"embed_dim": 0}, "embed_dim: expected an integer of at least 1, got 0"),
    ({"num_heads": 0}, "num_heads: expected an integer of at least 1, got 0"),
    ({"num_kv_heads": 3}, "num_kv_heads: expected a divisor of num_heads, 4, got 3"),
    ({"dropout": 1.5}, "dropout: expected a probability in [0, 1), got 1.5"),
    ({"slopes": _zeros(3)}, "slopes: expected shape (4,) or (1, 4), got (3,); one slope for each query head"),
    ({"learned_slopes": "log"}, "learned_slopes: expected False, True or 'positive', got 'log'"),
    (
        {"learned_slopes": "positive", "slopes": torch.tensor([1.0, 0.5, -0.25, 0.1])},
        "slopes: expected all positive with learned_slopes='positive', got a minimum of -0.25; "
        "learned_slopes=True takes any sign",
    ),
]


@pytest.mark.parametrize(("changes", "message"), MODULES)
def test_module_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        ALiBiAttention(**{"embed_dim": 32, "num_heads": 4, **changes})
    assert str(caught.value) == message


def test_module_refuses_inputs() -> None:
    module = ALiBiAttention(32, 4)
    with pytest.raises(ValueError, match=re.escape("x: expected (batch, seq_len, 32), got shape (2, 5, 16)")):
        module(torch.randn(2, 5, 16))
    with pytest.raises(ValueError, match=re.escape("key_mask: expected bool of shape (2, 5)")):
        module(torch.randn(2, 5, 32), key_mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="query: expected at least one element along seq_len"):
        module(torch.randn(2, 0, 32))


def test_merge_refuses() -> None:
    out, lse = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3)
    with pytest.raises(
        ValueError, match="outputs: expected as many as lses and at least one, got 0 outputs and 0 lses"
    ):
        merge_attention([], [])
    with pytest.raises(ValueError, match="got 2 outputs and 1 lses"):
        merge_attention([out, out], [lse])
    with pytest.raises(ValueError, match=re.escape("outputs[1]: expected shape (1, 2, 3, 4), got (1, 2, 3, 5)")):
        merge_attention([out, torch.zeros(1, 2, 3, 5)], [lse, lse])
    with pytest.raises(ValueError, match=re.escape("lses[0]: expected shape (1, 2, 3), got (1, 2, 4)")):
        merge_attention([out], [torch.zeros(1, 2, 4)])


def test_every_argument_is_used() -> None:
    """No argument is accepted and ignored: each changes the result."""
    tensors = _tensors()
    torch.manual_seed(0)
    plain = alibi_attention(**tensors)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[:, 0] = False
    for changes in (
        {"slopes": 2 * alibi_slopes(4)},
        {"is_causal": False},
        {"scale": 1.0},
        {"query_offset": -1},
        {"query_offset": torch.tensor([-1, -2])},
        {"key_mask": mask},
        {"window": (1, None)},
        {"dropout_p": 0.5},
    ):
        assert not torch.equal(alibi_attention(**{**tensors, **changes}), plain), changes
    one = {name: tensor[:1] for name, tensor in tensors.items()}
    halves = {"cu_seqlens": torch.tensor([0, 3, 6], dtype=torch.int32)}
    uneven = {**halves, "cu_seqlens_k": torch.tensor([0, 2, 6], dtype=torch.int32)}
    packed = [alibi_attention(**one, **options) for options in ({}, halves, uneven)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(packed, 2))
    long = {name: torch.randn(1, 1, 600, 8, dtype=torch.float64) for name in tensors}
    steep = torch.tensor([0.5])
    assert not torch.equal(alibi_attention(**long, slopes=steep, tolerance=0.5), alibi_attention(**long, slopes=steep))
    assert len(alibi_attention(**tensors, return_lse=True)) == 2


def test_options_may_be_numbers_of_numpys(any_backend: str) -> None:
    query, key, value = (torch.randn(2, 4, 90, 8, requires_grad=True) for _ in range(3))
    call = {"is_causal": False, "scale": 0.5, "window": (40, 3), "query_offset": 2, "tolerance": 0.25}
    same = {
        "is_causal": np.bool_(False), "scale": np.float32(0.5), "window": (np.int64(40), np.uint8(3)),
        "query_offset": np.int32(2), "tolerance": np.float16(0.25), "return_lse": np.bool_(True),
    }  # fmt: skip
    want = alibi_attention(query, key, value, **call, return_lse=True, backend=any_backend)
    for _ in range(3):  # the second and the third are remembered calls, where such are
        got = alibi_attention(query, key, value, **same, backend=any_backend)
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])
    grads = [torch.autograd.grad(out.sum(), (query, key, value)) for out in (got[0], want[0])]
    assert all(map(torch.equal, *grads))
    for cache in (KVCache(), HorizonCache()):
        with torch.no_grad():
            cache.append(key, value)
            steps = [cache.attend(query, scale=scale, window=(40, 0)) for scale in (0.5, np.float32(0.5))]
        assert torch.equal(*steps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": (1.5, 0)}, "window: expected (left, right) in tokens"),
        ({"window": 5}, "window: expected (left, right) in tokens"),
        ({"slopes": [0.5] * 4}, "slopes: expected a torch.Tensor, got list; make it one first"),
        ({"key_mask": [[True] * 6] * 2}, "key_mask: expected a torch.Tensor, got list; make it one first"),
        (
            {"slopes": torch.ones(4, dtype=torch.int64)},
            "slopes: expected float32 (or float64), got torch.int64; convert",
        ),
        (
            {"slopes": torch.tensor([1.0, math.nan, 1.0, 1.0])},
            "slopes: expected finite numbers, got [1.0, nan, 1.0, 1.0]",
        ),
        (
            {"slopes": torch.tensor([1.0, math.inf] * 4).reshape(2, 4)},
            "slopes: expected finite numbers, got [1.0, inf, ",
        ),
        (
            {"slopes": torch.tensor([1.0, 1.0, 1e300, -1e300], dtype=torch.float64)},
            "slopes: expected numbers that float32 can hold, got [1.0, 1.0, 1e+300, -1e+300]; they are computed with",
        ),
        ({"dropout_p": None}, "dropout_p: expected a number, got None"),
        ({"scale": "1"}, "scale: expected a number, got '1'"),
        ({"backend": 3}, "backend: expected None or a name, got 3"),
        ({"is_causal": None}, "is_causal: expected True or False, got None"),
        ({"return_lse": "no"}, "return_lse: expected True or False, got 'no'"),
        ({"query_offset": True}, "query_offset: expected an int or a (2,) integer tensor"),
        ({"query_offset": 2**63 - 5}, "query_offset: expected at most 2^40 either way, got"),
        ({"is_causal": np.int64(1)}, "is_causal: expected True or False, got "),
        ({"return_lse": torch.tensor(True)}, "return_lse: expected True or False, got tensor(True)"),
        ({"window": (np.bool_(True), 0)}, "window: expected (left, right) in tokens"),
        ({"window": (np.float64(3.0), 0)}, "window: expected (left, right) in tokens"),
        ({"query_offset": np.float32(1.0)}, "query_offset: expected an int or a (2,) integer tensor"),
        ({"scale": torch.tensor(0.5)}, "scale: expected a number, got tensor(0.5000)"),
        ({"scale": np.array(0.5)}, "scale: expected a number, got array(0.5)"),
        (
            {"cu_seqlens": _zeros(2, dtype=torch.int32, device="meta")},
            "cu_seqlens: expected packed sequences in one row",
        ),
    ],
)
def test_wrong_types_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        alibi_attention(**{**_tensors(), **changes})


def _nested(layout: torch.layout) -> Tensor:
    return torch.nested.nested_tensor([torch.randn(4, 6, 8), torch.randn(4, 6, 8)], layout=layout)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_only_dense_tensors_are_taken(name: str) -> None:
    tensors = _tensors()
    for odd, message in (
        (tensors[name].to_sparse(), "one of layout torch.sparse_coo; tensor.to_dense()"),
        (_nested(torch.jagged), "a nested one; pad sequences to one length and say with key_mask"),
        (_nested(torch.strided), "a nested one; pad sequences to one length and say with key_mask"),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(f"{name}: expected a dense tensor, got {message}")):
            alibi_attention(**{**tensors, name: odd})


def test_a_layout_taken_for_another_is_named() -> None:
    query, key = torch.randn(2, 6, 4, 8), torch.randn(2, 4, 6, 8)
    with pytest.raises(ValueError, match=r"divides query's 6, got 4.*pass query\.transpose\(1, 2\)$"):
        alibi_attention(query, key, key)


def _layer() -> ALiBiAttention:
    return ALiBiAttention(32, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ALiBiAttention("64", 8), "embed_dim: expected an integer of at least 1, got '64'"),
        (lambda: ALiBiAttention(64, 8, True), "dropout: expected a probability in [0, 1), got True"),
        (lambda: _layer()("hello"), "x: expected a torch.Tensor, got str"),
        (lambda: _layer()(torch.randn(1, 5, 32).to_sparse()), "x: expected a dense tensor, got one of layout"),
        (lambda: _layer()(torch.randn(1, 5, 32), cache={}), "cache: expected a KVCache or a HorizonCache, got dict"),
        (lambda: weight_decay_groups([_layer()], 0.1), "model: expected a torch.nn.Module, got list"),
        (lambda: weight_decay_groups(_layer(), -1), "weight_decay: expected a finite number of at least 0, got -1"),
        (lambda: weight_decay_groups(_layer(), "0.1"), "weight_decay: expected a finite number of at least 0, got '0"),
        (lambda: scale_slopes([0.5], method="ntk", train_length=8, length=16), "slopes: expected a torch.Tensor, got"),
        (lambda: slope_spans([0.5]), "slopes: expected a torch.Tensor, got list"),
    ],
)
def test_wrong_types_are_refused_beside_the_operator(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        call()


@pytest.mark.parametrize("make", [KVCache, HorizonCache])
def test_wrong_types_are_refused_by_caches(make: type[KVCache] | type[HorizonCache]) -> None:
    def held() -> KVCache | HorizonCache:
        cache = make()
        cache.append(tensor, tensor)
        return cache

    tensor = torch.randn(1, 2, 5, 8)
    for call, message in (
        (lambda: make().append(tensor.to_sparse(), tensor), "key: expected a dense tensor, got one of layout"),
        (lambda: make().append(tensor, "v"), "value: expected a torch.Tensor, got str"),
        (lambda: make().append(tensor, tensor, key_mask="x"), "key_mask: expected a torch.Tensor, got str"),
        (lambda: held().crop("5"), "length: expected an integer from 0 to 5, the tokens "),
        (lambda: held().crop(2.0), "length: expected an integer from 0 to 5, the tokens "),
        (lambda: held().reorder([0]), "index: expected a torch.Tensor, got list"),
        (lambda: held().attend("q"), "query: expected a torch.Tensor, got str"),
        (lambda: held().attend(tensor, return_lse=1), "return_lse: expected True or False, got 1"),
    ):
        with torch.no_grad(), pytest.raises(ValueError, match="^" + re.escape(message)):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": "x"}, "tolerance: expected a share of softmax mass between 0 and 1, got 'x'"),
        ({"headroom": "x"}, "headroom: expected nats, a finite number of at least 0, got 'x'"),
        ({"window": "12"}, "window: expected a positive number, or one for each head, got '12'"),
    ],
)
def test_wrong_types_are_refused_as_options_of_a_horizon_cache(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        HorizonCache(**options)


def test_windows_of_any_size_are_taken() -> None:
    tensors = _tensors()
    both_ways = alibi_attention(**tensors, is_causal=False)
    assert torch.equal(alibi_attention(**tensors, is_causal=False, window=(sys.maxsize, sys.maxsize)), both_ways)


def test_explaining_draws_no_random_number() -> None:
    tensors = _tensors()
    state = torch.get_rng_state()
    explain_backends(**tensors, dropout_p=0.5)
    assert torch.equal(torch.get_rng_state(), state)


def test_meta_tensors_have_shapes() -> None:
    tensors = {name: tensor.to("meta") for name, tensor in _tensors().items()}
    assert alibi_attention(**tensors).shape == (2, 4, 6, 8)
    with torch.device("meta"):
        module = ALiBiAttention(32, 4)
        assert module(torch.empty(2, 5, 32)).is_meta


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_a_tensor_left_out_is_named(name: str) -> None:
    tensors = {each: torch.zeros(1, 2, 3, 8) for each in ("query", "key", "value")} | {name: None}
    with pytest.raises(ValueError, match=f"^{name}: expected a torch.Tensor, got None; pass the tensor$"):
        alibi_attention(**tensors)


def test_heads_and_tokens_exchanged_are_guessed() -> None:
    tensor = torch.zeros(2, 100, 8, 16)
    with pytest.raises(ValueError, match=r"got \(8,\); one slope for each query head; where query, key and value are"):
        alibi_attention(tensor, tensor, tensor, alibi_slopes(8))
    with pytest.raises(ValueError, match=r"got \(2, 100, 8, 16\); one slope for each query head; a value has no place"):
        certify(tensor, tensor, tensor)
