"""The definition of ALiBi attention in plain torch: the specification of every backend, and the oracle of the tests.

It builds every score, in any floating dtype, and is differentiable by autograd as it stands.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from alibi_attention.dropout import keep_scale
from alibi_attention.problem import Problem, Saved
from alibi_attention.visibility import distances, row_ranges, visible


def reference_attention(
    problem: Problem, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor
) -> tuple[Tensor, Tensor]:
    """ALiBi attention as written down::

        score_ij = scale * q_i . k_j - m * |p_i - j|            over the keys j that row i sees
        lse_i    = ln sum_j exp(score_ij)
        out_i    = sum_j exp(score_ij - lse_i) v_j

    A row that sees no key, or whose keys hold no mass, has output 0 and lse -inf.

    Args:
        problem: the call.
        query: (batch, num_heads, q_len, head_dim).
        key: (batch, num_kv_heads, k_len, head_dim).
        value: (batch, num_kv_heads, k_len, value_dim).
        slopes: (num_heads,) or (batch, num_heads).

    Returns:
        (batch, num_heads, q_len, value_dim) in the dtype of ``query``, and (batch, num_heads, q_len) in float32, or
        float64 for float64.
    """
    dense = _dense_scores(problem, query, key, slopes)
    lse = torch.logsumexp(dense.scores, dim=-1)
    weights = _weights(dense, lse)
    if dense.drop is not None:
        weights = weights * dense.drop
    wide_value = value.to(problem.compute_dtype).repeat_interleave(problem.group_size, dim=1)
    return weighted_sum(weights, wide_value, dense.seen).to(problem.dtype), lse


def reference_gradients(
    problem: Problem, saved: Saved, grad_out: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of sum(grad_out * out) + sum(grad_lse * lse), as written down::

        P_ij     = exp(score_ij - lse_i)                    dP_ij = do_i . v_j
        dS_ij    = P_ij (dP_ij - do_i . out_i + dlse_i)
        dq_i     = scale sum_j dS_ij k_j                    dk_j  = scale sum_i dS_ij q_i
        dv_j     = sum_i P_ij do_i                          dm    = -sum_ij dS_ij |p_i - j|

    Over j, dS_ij add up to dlse_i; what they do besides comes of the rounding of out_i, is in each by P_ij, and is
    taken off dm as that: a row whose keys are all far would have it times their distance. Dropout multiplies P in dv
    and dP by its factors. Key and value gradients sum over the query heads they share.

    Returns:
        Those of query, key and value in their dtypes, and of slopes as (batch, num_heads).
    """
    work, group = problem.compute_dtype, problem.group_size
    dense = _dense_scores(problem, saved.query, saved.key, saved.slopes)
    massless = (saved.lse == -torch.inf).unsqueeze(-1)
    weights = _weights(dense, saved.lse)
    flow = grad_out.to(work).masked_fill(massless, 0.0)
    wide_key, wide_value = (t.to(work).repeat_interleave(group, dim=1) for t in (saved.key, saved.value))
    grad_weights = flow @ wide_value.transpose(-1, -2)
    kept = weights
    if dense.drop is not None:
        grad_weights, kept = grad_weights * dense.drop, weights * dense.drop
    mean = (flow * saved.out.to(work)).sum(-1, keepdim=True) - grad_lse.to(work).unsqueeze(-1)
    grad_scores = weights * (grad_weights - mean.masked_fill(massless, 0.0))
    grad_scores = grad_scores.masked_fill(~dense.seen, 0.0)
    by_key = dense.seen.transpose(-1, -2)
    stray = grad_scores.sum(-1) - grad_lse.to(work).masked_fill(massless.squeeze(-1), 0.0)

    def shared(total: Tensor) -> Tensor:
        return total.view(problem.batch, problem.num_kv_heads, group, *total.shape[2:]).sum(2)

    grad_query = problem.scale * weighted_sum(grad_scores, wide_key, dense.seen)
    grad_key = problem.scale * weighted_sum(grad_scores.transpose(-1, -2), saved.query.to(work), by_key)
    grad_value = weighted_sum(kept.transpose(-1, -2), flow, by_key)
    return (
        grad_query.to(problem.dtype),
        shared(grad_key).to(problem.dtype),
        shared(grad_value).to(problem.dtype),
        -((grad_scores * dense.distance).sum(-1) - stray * (weights * dense.distance).sum(-1)).sum(-1),
    )


class _Dense(NamedTuple):
    """(batch, num_heads, q_len, k_len) scores, -inf where not seen, and what they were made of."""

    scores: Tensor
    distance: Tensor
    seen: Tensor
    drop: Tensor | None


def _dense_scores(problem: Problem, query: Tensor, key: Tensor, slopes: Tensor) -> _Dense:
    work = problem.compute_dtype
    rows = row_ranges(problem)
    keys = torch.arange(problem.k_len, device=problem.device)
    seen = visible(rows, keys).unsqueeze(1)
    distance = distances(rows, keys, work).unsqueeze(1)
    wide_key = key.to(work).repeat_interleave(problem.group_size, dim=1)
    # Scaled first: a product may overflow where the scaled one does not.
    scores = (query.to(work) * problem.scale) @ wide_key.transpose(-1, -2)
    scores = scores - slopes.to(work)[..., None, None] * distance
    drop = dropout_scale(problem, keys).to(work) if problem.dropout_p > 0.0 else None
    return _Dense(scores.masked_fill(~seen, -torch.inf), distance, seen, drop)


def _weights(dense: _Dense, lse: Tensor) -> Tensor:
    # Rows without mass: exp(-inf - 0) is a clean 0, with clean gradients, where exp(-inf + inf) is not.
    weights = torch.exp(dense.scores - lse.masked_fill(lse == -torch.inf, 0.0).unsqueeze(-1))
    # A row whose lse is NaN has no weight, not even that, on keys it does not see.
    return weights.masked_fill(~dense.seen, 0.0)


def dropout_scale(problem: Problem, keys: Tensor) -> Tensor:
    """(batch, num_heads, q_len, len(keys)) factors on the weights of the whole problem's rows."""
    assert problem.seed is not None
    batches, heads, rows = (
        torch.arange(size, device=problem.device) for size in (problem.batch, problem.num_heads, problem.q_len)
    )
    return keep_scale(problem.seed, problem.dropout_p, problem.num_heads, batches, heads, rows, keys)


def weighted_sum(weights: Tensor, terms: Tensor, seen: Tensor) -> Tensor:
    """weights @ terms, in which a term that is not finite reaches exactly the rows that see it.

    A plain product also spreads it to the rows that do not, as 0 * NaN.

    Args:
        weights: (..., rows, columns), zero where not seen.
        terms: (..., columns, dim).
        seen: (..., rows, columns) bool, broadcastable to ``weights``.

    Returns:
        (..., rows, dim).
    """
    finite = torch.isfinite(terms)
    if bool(finite.all()):
        return weights @ terms
    total = weights @ terms.masked_fill(~finite, 0.0)
    views = seen.to(terms.dtype)
    rising = views @ (terms == torch.inf).to(terms.dtype) > 0
    falling = views @ (terms == -torch.inf).to(terms.dtype) > 0
    undefined = (views @ terms.isnan().to(terms.dtype) > 0) | (rising & falling)
    total = torch.where(rising, torch.inf, total)
    total = torch.where(falling, -torch.inf, total)
    return torch.where(undefined, torch.nan, total)
