"""What several processes do together, compared with what one does; run in every process of a group."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from process_checks import PROCESSES, SUMS, check, close, parts, refuses
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.checkpoint import checkpoint

from alibi_attention import ALiBiAttention, KVCache, alibi_attention, alibi_slopes
from alibi_attention.parallel import context_attention, context_windows, shard_heads, split_context, windows


@check
def any_call_is_that_of_one_process(rank: int) -> None:
    for seed in range(16):
        generator = torch.Generator().manual_seed(seed)

        def any_of(*choices: Any, generator: torch.Generator = generator) -> Any:
            return choices[int(torch.randint(len(choices), (), generator=generator))]

        length, batch = any_of(5, 64, 130, 700, 1500), any_of(1, 2)
        kv_heads, group = any_of((1, 1), (2, 2), (1, 4), (4, 1))
        heads, dim, value_dim = kv_heads * group, any_of(8, 16), any_of(8, 24)
        dtype = any_of(torch.float64, torch.float32, torch.float32, torch.bfloat16)
        options = {
            "is_causal": any_of(True, True, False), "window": any_of(None, None, (70, 70), (0, None)),
            "scale": any_of(None, 1.5, -0.2), "tolerance": any_of(None, None, 0.0, 1e-9),
        }  # fmt: skip
        slopes = any_of(torch.tensor([0.5, 0.3, 0.05, 0.0]), torch.tensor([1.0, 0.4, 0.2, 0.1]))[:heads]
        if batch == 2 and any_of(True, False):
            slopes = torch.stack([slopes, 2.0 * slopes])

        def normal(*shape: int, generator: torch.Generator = generator, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        query, key = normal(batch, heads, length, dim), normal(batch, kv_heads, length, dim)
        value, grad_out = normal(batch, kv_heads, length, value_dim), normal(batch, heads, length, value_dim)
        grad_lse = normal(batch, heads, length).double().to(torch.float64 if dtype == torch.float64 else torch.float32)
        if any_of(True, False):
            # An attention sink.
            key[:, :, 0] *= 20.0
        own = parts(length, generator)[rank]
        leaves = [t[:, :, own].detach().clone().requires_grad_() for t in (query, key, value)]
        leaves.append(slopes.clone().requires_grad_())
        out, lse = context_attention(*leaves, **options, return_lse=True)
        grads = list(torch.autograd.grad((out, lse), leaves, (grad_out[:, :, own], grad_lse[:, :, own])))
        dist.all_reduce(grads[3])

        whole = [t.double().clone().requires_grad_() for t in (query, key, value, slopes)]
        exact, exact_lse = alibi_attention(
            *whole, **{**options, "tolerance": 0.0}, return_lse=True, backend="reference"
        )
        want = torch.autograd.grad((exact, exact_lse), whole, (grad_out.double(), grad_lse.double()))
        what = f"seed {seed}, {own} of {length}, {dtype}, {options}"
        close(out, exact[:, :, own], dtype, f"out, {what}")
        lse_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        close(lse, exact_lse[:, :, own], lse_dtype, f"lse, {what}")
        for name, got, wanted in zip(("query", "key", "value"), grads[:3], want[:3], strict=True):
            close(got, wanted[:, :, own], dtype, f"grad {name}, {what}")
        close(grads[3], want[3], SUMS[dtype], f"grad slopes, {what}")


@check
def what_is_left_out_stays_below_the_tolerance(rank: int) -> None:
    """Large tolerances, inputs that make the bound tight, parts that begin inside a tile: each row's true loss."""
    reached = {"left out": False, "window": False}
    generator = torch.Generator().manual_seed(0)
    for case in range(24):
        tolerance, norms = (0.5, 0.1, 1e-3)[case % 3], (64, 256)[case // 12]
        slopes = torch.tensor([0.5, 0.2, 0.1, 0.05], dtype=torch.float64)
        direction = torch.randn(16, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        query = (direction * (0.5 + torch.rand(1, 4, 900, 1, generator=generator))).to(torch.float64)
        # Old keys point where queries do, new ones the other way; or one old key alone does.
        key = direction * (4.0 * torch.rand(1, 4, 900, 1, generator=generator))
        if case % 2:
            key[:, :, 100 + 200 * (case % 3) :] *= -1.0
        else:
            key *= 0.2
            key[:, :, 0] = 30.0 * direction
        key = key + 5.0 * torch.randn(16, generator=generator, dtype=torch.float64)
        value = torch.randn(1, 4, 900, 16, generator=generator, dtype=torch.float64)
        own = parts(900, generator)[rank]
        tensors = (*(t[:, :, own] for t in (query, key, value)), slopes)
        options = {"tolerance": tolerance, "is_causal": case % 4 != 3}
        with mock.patch.object(windows, "block_of", return_value=norms):
            out, lse = context_attention(*tensors, **options, return_lse=True)
            needs = context_windows(*tensors, **options).needs[rank]
        exact, exact_lse = alibi_attention(
            query, key, value, slopes, is_causal=case % 4 != 3, tolerance=0.0, return_lse=True, backend="reference"
        )
        lost = 1.0 - torch.exp(lse - exact_lse[:, :, own])
        assert lost.max() <= tolerance, f"case {case}: {lost.max():.3g} of a row's mass, allowed {tolerance}"
        # Of two weighted means, of values that lie so far apart.
        width = value.amax(2) - value.amin(2)
        assert ((out - exact[:, :, own]).abs().amax(2) <= tolerance * width + 1e-12).all(), case
        reached["left out"] |= bool(lost.max() > 1e-9)
        reached["window"] |= any(need.first > 0 for need in needs)
    if rank == PROCESSES - 1:
        assert all(reached.values()), reached


@check
def keys_that_hold_all_the_mass_are_found(rank: int) -> None:
    """A far row's mass is all in the first tile, in a tile that two parts share, or in a part whose mean is far off."""
    slopes = torch.tensor([0.1, 0.1], dtype=torch.float64)
    bounds = [0, 300, 610, 900, 1200]
    for first, end in ((3, 4), (299, 300), (0, 300)):
        query = torch.ones(1, 2, 1200, 8, dtype=torch.float64)
        key = torch.zeros(1, 2, 1200, 8, dtype=torch.float64)
        key[:, :, first:end] = 60.0
        value = torch.randn(1, 2, 1200, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        whole, own = (query, key, value), slice(bounds[rank], bounds[rank + 1])
        leaves = [t[:, :, own].clone().requires_grad_() for t in whole]
        got = context_attention(*leaves, slopes)
        full = [t.clone().requires_grad_() for t in whole]
        want = alibi_attention(*full, slopes, tolerance=0.0, backend="reference")
        close(got, want[:, :, own], torch.float64, f"out, {first}")
        grads = torch.autograd.grad(got.square().sum(), leaves)
        wanted = torch.autograd.grad(want.square().sum(), full)
        for name, mine, theirs in zip(("query", "key", "value"), grads, wanted, strict=True):
            # Of queries that many equal keys cancel in.
            if (name, first) != ("query", 0):
                close(mine, theirs[:, :, own], torch.float64, f"{name}, {first}")
        if first == 3:
            # And what lies between is not sent.
            needs = context_windows(*(t.detach() for t in leaves), slopes).needs
            assert needs[3][0].sink == 64
            assert needs[3][0].first > 300


def _tensors(each: int, rank: int, slopes: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(1, 4, each, 16, generator=generator) for _ in range(3)] + [slopes]


@check
def what_is_sent_does_not_grow_with_the_length(rank: int) -> None:
    slopes = torch.tensor([0.8, 0.4, 0.2, 0.1])
    # Keys and values of 16 float32 each, of four heads: as far as the flattest may see, and its power of two.
    most = 4 * 1024 * (2 * 16 * 4)
    for each in (1000, 2000, 6000):
        seen = context_windows(*_tensors(each, rank, slopes))
        assert seen.starts == tuple(each * number for number in range(PROCESSES + 1))
        assert seen.received(0) == 0
        taken = [seen.received(number) for number in range(1, PROCESSES)]
        assert all(0 < bytes_ <= most for bytes_ in taken), taken
    seen = context_windows(*_tensors(1000, rank, slopes), tolerance=0.0)
    assert [seen.received(number) for number in range(PROCESSES)] == [4 * 1000 * n * 128 for n in range(PROCESSES)]


@check
def what_is_not_finite_is_not_hidden(rank: int) -> None:
    slopes = torch.tensor([0.8, 0.4, 0.2, 0.1])
    for name in ("key", "value"):
        for poison in (torch.nan, torch.inf):
            whole = [torch.cat([_tensors(300, r, slopes)[i] for r in range(PROCESSES)], dim=2) for i in range(3)]
            {"key": whole[1], "value": whole[2]}[name][0, 1, 20, 3] = poison
            own = slice(300 * rank, 300 * rank + 300)
            got = context_attention(*(t[:, :, own] for t in whole), slopes)
            want = alibi_attention(*whole, slopes, tolerance=0.0)[:, :, own]
            assert torch.equal(got.isfinite(), want.isfinite()), (name, poison)
            assert rank == 0 or not got[0, 1].isfinite().all(), "the rows of this part see it"


@check
def parts_may_need_no_gradients(rank: int) -> None:
    """Who has only queries to train takes part in nothing on the way back, and nobody waits for him."""
    query, key, value, slopes = _tensors(200, rank, alibi_slopes(4))
    query.requires_grad_()
    context_attention(query, key, value, slopes).sum().backward()
    assert query.grad is not None
    # And where a part is all that is looked at, the others' keys get their gradients all the same.
    query, key, value, slopes = _tensors(200, rank, alibi_slopes(4))
    key.requires_grad_()
    out = context_attention(query, key, value, slopes)
    (out.sum() if rank == PROCESSES - 1 else out[:, :, :0].sum()).backward()
    assert key.grad is not None
    assert key.grad.abs().sum() > 0


@check
def checkpointing_comes_to_the_same(rank: int) -> None:
    tensors = _tensors(150, rank, alibi_slopes(4))
    grads = []
    for way in (lambda *t: context_attention(*t), lambda *t: checkpoint(context_attention, *t, use_reentrant=False)):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        grads.append(torch.autograd.grad(way(*leaves).square().sum(), leaves))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@check
def some_processes_share_a_sequence(rank: int) -> None:
    first, second = dist.new_group([0, 2]), dist.new_group([1, 3])
    group, members = (first, (0, 2)) if rank % 2 == 0 else (second, (1, 3))
    tensors = [_tensors(90, r, alibi_slopes(4)) for r in members]
    got = context_attention(*tensors[members.index(rank)], group=group)
    whole = [torch.cat([t[i] for t in tensors], dim=2) for i in range(3)]
    own = slice(90 * members.index(rank), 90 * members.index(rank) + 90)
    close(got, alibi_attention(*whole, alibi_slopes(4))[:, :, own], torch.float32, "out")
    text = "group: expected one that this process is in, got"
    refuses(ValueError, text, lambda: context_attention(*tensors[0], group=second if rank % 2 == 0 else first))
    dist.barrier()


@check
def calls_that_differ_are_refused_everywhere(rank: int) -> None:
    query, key, value, slopes = _tensors(40, rank, alibi_slopes(4))
    cases: list[tuple[str, dict[str, Any]]] = [
        ("scale: expected the same in every process, got 0.25 in rank 0 and 0.3 in rank 2", {"scale": 0.3}),
        ("is_causal: expected the same in every process, got 1 in rank 0 and 0 in rank 2", {"is_causal": False}),
        ("window: expected the same in every process, got -1 in rank 0 and 5 in rank 2", {"window": (5, None)}),
        ("tolerance: expected the same in every process", {"tolerance": 0.1}),
    ]
    for text, options in cases:
        refuses(
            ValueError, text, lambda o=options: context_attention(query, key, value, slopes, **(o if rank == 2 else {}))
        )
    half = [t.half() if rank == 1 else t for t in (query, key, value)]
    text = "dtype: expected the same in every process, got torch.float32 in rank 0 and torch.float16 in rank 1"
    refuses(ValueError, text, lambda: context_attention(*half, slopes))
    # Others, and the same in another order.
    for other in (2.0 * slopes, slopes.flip(0)):
        text = "slopes: expected the same in every process, got others in rank 3 than in rank 0"
        refuses(ValueError, text, lambda m=other if rank == 3 else slopes: context_attention(query, key, value, m))
    # Who wants no gradient of keys would not take part in the way back.
    text = "key: expected the same in every process, got gradients wanted of key or value in ranks 0, 2, 3 alone"
    leaf = key.clone().requires_grad_(rank != 1)
    refuses(ValueError, text, lambda: context_attention(query, leaf, value, slopes))


@check
def one_that_is_refused_keeps_nobody_waiting(rank: int) -> None:
    query, key, value, slopes = _tensors(40, rank, alibi_slopes(4))
    none = query[:, :, :0]
    layer = split_context(ALiBiAttention(32, 4, dropout=0.5))
    x, mask = torch.randn(2, 20, 32), torch.ones(2, 20, dtype=torch.bool)
    cases: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
        (
            "key: expected as many tokens as query, 40, got 39; a process has the queries",
            lambda: context_attention(query, key[:, :, 1:], value[:, :, 1:], slopes),
            lambda: context_attention(query, key, value, slopes),
        ),
        (
            "query: expected a token at least in every process, got none here; divide the sequence among fewer",
            lambda: context_attention(none, none, none, slopes),
            lambda: context_attention(query, key, value, slopes),
        ),
        (
            "query: expected a torch.Tensor, got None",
            lambda: context_attention(None, key, value, slopes),  # type: ignore[call-overload]
            lambda: context_attention(query, key, value, slopes),
        ),
        (
            "backend: expected None or one of",
            lambda: context_attention(query, key, value, slopes, backend="quick"),
            lambda: context_attention(query, key, value, slopes),
        ),
        (
            "key_mask: expected None where processes share a sequence, got a mask",
            lambda: layer.eval()(x, key_mask=mask),
            lambda: layer.eval()(x),
        ),
        (
            "dropout: expected 0 where processes share a sequence, got 0.5",
            lambda: layer.train()(x),
            lambda: layer.eval()(x),
        ),
    ]
    for text, wrong, right in cases:
        if rank == 1:
            refuses(ValueError, text, wrong)
        else:
            refuses(RuntimeError, "the call of rank 1 was refused; its own error says why", right)
    text = "cache: expected None where processes share a sequence, got one"
    refuses(ValueError, text, lambda: layer(x, cache=KVCache()))


class Block(nn.Module):
    """A decoder in small: nothing but attention looks at other tokens."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.layers = nn.ModuleList(ALiBiAttention(32, 4, num_kv_heads=2, **options) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return x


@check
def a_model_is_trained_on_a_divided_sequence(rank: int) -> None:
    torch.manual_seed(0)
    model = Block(learned_slopes="positive")
    x = torch.randn(2, 400, 32)
    own = parts(400, torch.Generator().manual_seed(3))[rank]
    divided = split_context(copy.deepcopy(model))
    close(divided(x[:, own]), model(x)[:, own], torch.float32, "out")
    divided(x[:, own]).square().sum().backward()
    model(x).square().sum().backward()
    for (name, ours), (_, whole) in zip(divided.named_parameters(), model.named_parameters(), strict=True):
        assert ours.grad is not None
        assert whole.grad is not None
        dist.all_reduce(ours.grad)
        close(ours.grad, whole.grad, SUMS[torch.float32], name)
    assert divided.state_dict().keys() == model.state_dict().keys()
    # Copies keep the group, which cannot be written to a file.
    close(copy.deepcopy(divided)(x[:, own]), model(x)[:, own], torch.float32, "a copy's out")
    refuses(TypeError, "model: expected one that no processes share", lambda: pickle.dumps(divided))
    layer = divided.layers[0]
    mask = torch.ones(2, own.stop - own.start, dtype=torch.bool)
    refuses(
        ValueError, "key_mask: expected None where processes share a sequence", lambda: layer(x[:, own], key_mask=mask)
    )
    dropping = split_context(ALiBiAttention(32, 4, dropout=0.5))
    refuses(ValueError, "dropout: expected 0 where processes share a sequence, got 0.5", lambda: dropping(x[:, own]))
    dropping.eval()(x[:, own])
    refuses(ValueError, "model: expected ALiBiAttention layers", lambda: split_context(nn.Linear(3, 3)))
    refuses(ValueError, "model: expected a torch.nn.Module, got str", lambda: split_context("model"))  # type: ignore[type-var]


@check
def heads_are_divided(rank: int) -> None:
    mesh = init_device_mesh("cpu", (PROCESSES,))
    x = torch.randn(2, 70, 64, generator=torch.Generator().manual_seed(1))
    for options in ({}, {"learned_slopes": True}, {"learned_slopes": "positive"}, {"bias": True, "is_causal": False}):
        torch.manual_seed(0)
        whole = ALiBiAttention(64, 8, num_kv_heads=4, **options)
        layer = shard_heads(copy.deepcopy(whole), mesh)
        assert (layer.num_heads, layer.num_kv_heads, layer.head_dim) == (2, 1, 8)
        assert torch.equal(layer.head_slopes(), whole.head_slopes()[2 * rank : 2 * rank + 2])
        close(layer(x), whole(x), torch.float32, f"out, {options}")
        layer(x).square().sum().backward()
        whole(x).square().sum().backward()
        for name, full in whole.named_parameters():
            ours = layer.get_parameter(name)
            assert ours.grad is not None
            grad = ours.grad.full_tensor() if hasattr(ours.grad, "full_tensor") else ours.grad
            if name == "k_proj.bias":
                # What all keys have in common a softmax does not see: 0, but for rounding.
                assert max(grad.abs().max(), full.grad.abs().max()) < 1e-5
                continue
            close(grad, full.grad, SUMS[torch.float32], f"{name}, {options}")
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        optimizer.step()
        layer.reset_parameters()
        presets = whole.head_slopes()[2 * rank : 2 * rank + 2]
        assert torch.equal(layer.head_slopes(), presets)
        with torch.device("meta"):
            empty = ALiBiAttention(64, 8, num_kv_heads=4, **options)
        empty.requires_grad_(False)
        empty = shard_heads(empty, mesh).to_empty(device="cpu")
        assert torch.equal(empty.head_slopes(), presets)
        assert not any(parameter.requires_grad for parameter in empty.parameters())
        assert layer.to(torch.bfloat16).head_slopes().dtype == torch.float32
        assert layer(x.bfloat16()).dtype == torch.bfloat16


@check
def a_divided_layer_decodes(rank: int) -> None:
    del rank
    torch.manual_seed(0)
    whole = ALiBiAttention(64, 8).eval()
    layer, x = shard_heads(copy.deepcopy(whole), init_device_mesh("cpu", (PROCESSES,))), torch.randn(1, 40, 64)
    with torch.no_grad():
        cache = KVCache()
        got = torch.cat(
            [layer(x[:, :30], cache=cache), *(layer(x[:, i : i + 1], cache=cache) for i in range(30, 40))], 1
        )
        close(got, whole(x), torch.float32, "out")
        assert cache.key.shape[1] == 2


@check
def heads_that_cannot_be_divided_are_refused(rank: int) -> None:
    del rank
    mesh = init_device_mesh("cpu", (PROCESSES,))
    text = "mesh: expected a size that divides num_kv_heads, 2, got 4; a head is not divided"
    refuses(ValueError, text, lambda: shard_heads(ALiBiAttention(64, 8, num_kv_heads=2), mesh))
    refuses(
        ValueError, "mesh: expected a DeviceMesh of one dimension, got 4", lambda: shard_heads(ALiBiAttention(64, 8), 4)
    )
    both = init_device_mesh("cpu", (2, 2))
    refuses(
        ValueError,
        "mesh: expected a DeviceMesh of one dimension, got one of 2",
        lambda: shard_heads(ALiBiAttention(64, 8), both),
    )
    divided = shard_heads(ALiBiAttention(64, 8), mesh)
    refuses(ValueError, "model: expected heads that are not divided yet", lambda: shard_heads(divided, mesh))
    text = "model: expected attention without dropout, got 0.1; processes with one seed would drop the same weights"
    refuses(ValueError, text, lambda: shard_heads(ALiBiAttention(64, 8, dropout=0.1), mesh))


@check
def heads_and_the_sequence_are_divided_at_once(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("context", "heads"))
    torch.manual_seed(0)
    whole, x = ALiBiAttention(64, 8, learned_slopes=True), torch.randn(1, 300, 64)
    layer = split_context(shard_heads(copy.deepcopy(whole), mesh["heads"]), mesh["context"].get_group())
    own = slice(0, 110) if rank < 2 else slice(110, 300)
    close(layer(x[:, own]), whole(x)[:, own], torch.float32, "out")
