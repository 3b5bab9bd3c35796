"""How far from the truth a result may be: twice as far as plain dense torch operations in the same dtype get."""

from __future__ import annotations

import torch
from operator_cases import Case
from torch import Tensor

from alibi_attention.call import call_arguments, problem_of
from alibi_attention.dispatch import reasons
from alibi_attention.problem import Problem
from alibi_attention.reference import dropout_scale
from alibi_attention.visibility import distances, row_ranges, visible

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
    keys = torch.arange(problem.k_len)
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


def _term_sizes(case: Case) -> tuple[float, ...]:
    """How large the terms are that each result sums: cancellation may leave a result far smaller than its rounding."""
    problem = problem_for(case)
    query, key, value, grad_out = (
        t.double().norm(dim=-1).amax().item() for t in (case.query, case.key, case.value, case.grad_out)
    )
    rows = row_ranges(problem)
    distance = distances(rows, torch.arange(problem.k_len), torch.float64)
    furthest = distance.masked_fill(~visible(rows, torch.arange(problem.k_len)), 0.0).amax().item()
    score = abs(problem.scale) * query * key + case.slopes.abs().amax().item() * furthest
    keep = 1.0 / (1.0 - problem.dropout_p)
    # Sums over rows of what would cancel to nothing gather the rounding of each.
    many = (problem.q_len * problem.group_size * problem.batch) ** 0.5
    flow = keep * grad_out * value + case.grad_lse.abs().amax().item()
    return (
        keep * value,
        score + 1.0,
        abs(problem.scale) * flow * key,
        abs(problem.scale) * flow * query * many,
        keep * grad_out * many,
        flow * furthest * many,
    )


def check(case: Case, got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    """Every result within twice the error of `plain_torch`, or one rounding of the terms it sums.

    Scores are sums too: their own rounding moves every weight, and so everything, by that share.
    """
    plain = plain_torch(case)
    score = _term_sizes(case)[1]
    for name, g, w, p, term in zip(NAMES, got, want, plain, _term_sizes(case), strict=True):
        assert g.shape == w.shape, name
        hidden = w == -torch.inf
        assert torch.equal(g == -torch.inf, hidden), f"{name}: -inf in other places"
        g, w, p = (t.double().masked_fill(hidden, 0.0) for t in (g, w, p))
        assert not g.isnan().any(), f"{name}: NaN"
        ours, theirs = (g - w).abs().amax().item(), (p - w).abs().amax().item()
        wide = torch.float64 if case.query.dtype == torch.float64 else torch.float32
        # Every gradient takes the rounded output in, as in any attention that recomputes its weights.
        last = wide if name == "lse" else case.query.dtype
        rounding = term * max(torch.finfo(wide).eps * max(score, 1.0) / 4, torch.finfo(last).eps)
        if wide == torch.float64:
            # The oracle rounds as much as what it judges.
            rounding *= 16
        assert ours <= 2 * theirs + rounding, (
            f"{name}: error {ours:.3g}, plain torch {theirs:.3g}, rounding {rounding:.3g}"
        )
