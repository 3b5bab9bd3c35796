"""How far from the truth a result may be: twice as far as plain dense torch operations in the same dtype get."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alibi_attention.call import call_arguments, problem_of
from alibi_attention.dispatch import reasons
from alibi_attention.problem import Problem
from alibi_attention.reference import dropout_scale
from alibi_attention.visibility import distances, row_ranges, visible

if TYPE_CHECKING:
    from operator_cases import Case

_DEFAULTS = dict.fromkeys(
    ["scale", "query_offset", "key_mask", "cu_seqlens", "cu_seqlens_k", "window", "tolerance", "backend"]
)


def problem_for(case: Case) -> Problem:
    torch.manual_seed(1)
    options = {**_DEFAULTS, "is_causal": True, "dropout_p": 0.0, **case.options}
    query, key, value, _, *call = call_arguments(*case.tensors, **options)
    return problem_of(query, key, value, *call)[0]


def serves(case: Case, backend: str) -> bool:
    """Whether the backend takes the call; one that refuses must say why."""
    reason = reasons(problem_for(case))[backend]
    assert reason is None or len(reason) > 10
    return reason is None


def plain_torch(case: Case) -> tuple[Tensor, ...]:
    """out, lse and gradients as dense torch operations give them in the dtype of the case, bias and softmax in fp32."""
    problem = problem_for(case)
    work = problem.compute_dtype
    leaves = [t.detach().clone().requires_grad_() for t in case.tensors]
    query, key, value, slopes = leaves
    rows = row_ranges(problem)
    keys = torch.arange(problem.k_len, device=problem.device)
    seen = visible(rows, keys).unsqueeze(1)
    wide_key, wide_value = (t.repeat_interleave(problem.group_size, dim=1) for t in (key, value))
    scores = (query @ wide_key.transpose(-1, -2)).to(work) * problem.scale
    scores = scores - slopes.to(work)[..., None, None] * distances(rows, keys, work).unsqueeze(1)
    scores = scores.masked_fill(~seen, -torch.inf)
    lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0).unsqueeze(-1))
    if problem.dropout_p > 0.0:
        weights = weights * dropout_scale(problem, keys).to(work)
    out = weights.to(query.dtype) @ wide_value
    grads = torch.autograd.grad((out, lse), leaves, (case.grad_out, case.grad_lse.masked_fill(lse == -torch.inf, 0.0)))
    return out.detach(), lse.detach(), *grads


NAMES = ("out", "lse", "grad query", "grad key", "grad value", "grad slopes")


def _rounding(case: Case, want: tuple[Tensor, ...]) -> tuple[float, ...]:
    """Root-mean-square errors that rounding alone must be expected to leave, from a count of where it happens.

    Three places: a score is rounded in proportion to its size, and with it every weight; in 16 bits the output is
    rounded before backward takes it in, which moves every gradient of a score in its row by e_i P_ij (as in any
    attention that recomputes its weights); and each result is rounded at last. `plain_torch` meets the first and the
    last too, but where terms cancel it may happen to be exact.
    """
    problem = problem_for(case)
    query, key, value, slopes, grad_out = (t.double() for t in (*case.tensors, case.grad_out))
    wide_key, wide_value = (t.repeat_interleave(problem.group_size, dim=1) for t in (key, value))
    rows, keys = row_ranges(problem), torch.arange(problem.k_len, device=problem.device)
    seen, distance = visible(rows, keys).unsqueeze(1), distances(rows, keys, torch.float64).unsqueeze(1)
    bias = slopes[..., None, None].expand(problem.batch, problem.num_heads, 1, 1) * distance
    scores = ((query @ wide_key.mT) * problem.scale - bias).masked_fill(~seen, -torch.inf)
    weights = torch.softmax(scores, -1).nan_to_num(0.0)
    keep = 1.0 / (1.0 - problem.dropout_p)

    exact = torch.float64 if case.query.dtype == torch.float64 else torch.float32
    unit, last = torch.finfo(exact).eps, torch.finfo(case.query.dtype).eps
    # Of the scores that matter: their products, and the bias, in the size of what is summed.
    sizes = abs(problem.scale) * query.norm(dim=-1, keepdim=True) * wide_key.norm(dim=-1).unsqueeze(-2) + bias.abs()
    score = unit * (2.0 + (weights * sizes).sum(-1))
    flow = keep * grad_out.norm(dim=-1) * _rms(wide_value.norm(dim=-1)) + case.grad_lse.double().abs()
    moved = score * flow
    if exact != case.query.dtype:
        moved = moved + last * keep * (grad_out * want[0].double()).norm(dim=-1)
    moved = moved.masked_fill(want[1] == -torch.inf, 0.0)

    per_pair = weights * moved.unsqueeze(-1)
    per_key = (per_pair.square() * query.square().sum(-1, keepdim=True)).sum(-2).sqrt()
    values = keep * (weights * (score * grad_out.norm(dim=-1)).unsqueeze(-1)).square().sum(-2).sqrt()
    size = abs(problem.scale)
    return (
        _rms(score) * keep * _rms(value) + last * _rms(want[0]),
        _rms(score) + unit * _rms(want[1].masked_fill(want[1] == -torch.inf, 0.0)),
        size * _rms(moved) * _rms(key) + last * _rms(want[2]),
        size * _rms(per_key) * problem.group_size**0.5 / problem.head_dim**0.5 + last * _rms(want[3]),
        _rms(values) * problem.group_size**0.5 / problem.value_dim**0.5 + last * _rms(want[4]),
        _rms((per_pair * distance).sum(-1).square().sum(-1).sqrt()) * (1 if slopes.dim() == 2 else problem.batch**0.5)
        + unit * _rms(want[5]),
    )


def _rms(tensor: Tensor) -> float:
    return tensor.double().square().mean().sqrt().item()


def check(case: Case, got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    """Every result within twice the error of `plain_torch` plus twice what rounding must leave, root mean square.

    A mean over n elements that are few is itself uncertain, by a share of about 1 / sqrt(n).
    """
    plain = plain_torch(case)
    for name, g, w, p, rounding in zip(NAMES, got, want, plain, _rounding(case, want), strict=True):
        assert g.shape == w.shape, name
        hidden = w == -torch.inf
        assert torch.equal(g == -torch.inf, hidden), f"{name}: -inf in other places"
        g, w, p = (t.double().masked_fill(hidden, 0.0) for t in (g, w, p))
        assert not g.isnan().any(), f"{name}: NaN"
        ours, theirs = _rms(g - w), _rms(p - w)
        few = 1.0 + 4.0 / w.numel() ** 0.5
        if w.dtype == case.query.dtype == torch.float64:
            # The oracle rounds as much as what it judges.
            few *= 4
        limit = 2 * few * (theirs + rounding)
        assert ours <= limit, (
            f"{name}: error {ours:.3g}, allowed {limit:.3g} (plain torch {theirs:.3g}, rounding {rounding:.3g}), "
            f"size {_rms(w):.3g}"
        )
