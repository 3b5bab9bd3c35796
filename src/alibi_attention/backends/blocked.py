"""Blocks of queries over their horizon of keys, in plain torch: any device, O(length) memory, forward and backward.

Each block of queries sweeps its keys in chunks, from the last to the first, with the running maximum and sum of a
softmax in one pass. Heads whose horizons are alike go through one batched product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from alibi_attention.backends.base import Gradients
from alibi_attention.backends.schedule import Block, Work, schedule
from alibi_attention.dropout import keep_scale
from alibi_attention.horizon import BLOCK_Q, blocks_of, plan_tiles
from alibi_attention.problem import Problem, Saved
from alibi_attention.reference import weighted_sum
from alibi_attention.visibility import Rows, row_ranges, visible


class BlockedBackend:
    name = "blocked"

    def why_not(self, problem: Problem) -> str | None:  # noqa: ARG002
        return None

    def plan_shape(self, problem: Problem) -> tuple[int, ...]:
        # Flat: a dimension that can be 1 would make a compiler specialise on it and compile again for others.
        return (problem.batch * problem.num_heads * blocks_of(problem.q_len, BLOCK_Q) * 3,)

    def forward(
        self, problem: Problem, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        plan = plan_tiles(problem, query, key, value, slopes)
        tiles = _Tiles(problem, query, key, value, slopes)
        out = query.new_empty(problem.batch, problem.num_heads, problem.q_len, problem.value_dim)
        lse = query.new_empty(problem.batch, problem.num_heads, problem.q_len, dtype=problem.compute_dtype)
        for work in schedule(problem, plan, tiles.rows):
            block_out, block_lse = _sweep(tiles, work)
            out[work.block.at] = block_out.to(out.dtype)
            lse[work.block.at] = block_lse
        return out, lse, plan.flatten()

    def backward(self, problem: Problem, saved: Saved, grad_out: Tensor, grad_lse: Tensor) -> Gradients:
        dtype = problem.compute_dtype
        tiles = _Tiles(problem, saved.query, saved.key, saved.value, saved.slopes)
        grads = Gradients(
            torch.empty_like(saved.query),
            torch.zeros_like(saved.key, dtype=dtype),
            torch.zeros_like(saved.value, dtype=dtype),
            saved.slopes.new_zeros(problem.batch, problem.num_heads, dtype=dtype),
        )
        plan = saved.plan.view(problem.batch, problem.num_heads, -1, 3)
        for work in schedule(problem, plan, tiles.rows):
            _sweep_back(tiles, work, saved, grad_out, grad_lse, grads)
        return Gradients(grads.query, grads.key.to(saved.key.dtype), grads.value.to(saved.value.dtype), grads.slopes)


class _Chunk(NamedTuple):
    """Scores of one block of queries against one run of keys, (b, h, rows, keys), and what they were made of."""

    scores: Tensor
    distance: Tensor
    keys: Tensor
    values: Tensor
    seen: Tensor | None  # what each row sees, where something is not finite and that matters
    drop: Tensor | None


class _Partial(NamedTuple):
    """A softmax under way: running maximum and sum, (b, h, rows, 1), and the output still to be divided by the sum."""

    peak: Tensor
    mass: Tensor
    out: Tensor


class _Tiles:
    """Reads tiles out of the four tensors and forms their scores."""

    def __init__(self, problem: Problem, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> None:
        self.problem = problem
        self.query, self.key, self.value = query, key, value
        self.dtype = problem.compute_dtype
        self.slopes = slopes.detach().to(self.dtype).expand(problem.batch, -1)
        self.rows = row_ranges(problem)
        # 0 * NaN leaks from keys a row does not see; asking costs nothing beside the products, except a wait on a GPU.
        norms = problem.key_norms
        asked = (query, key, value) if norms is None else (query, norms.masked_fill(norms == -torch.inf, 0.0))
        self.finite = all(bool(t.isfinite().all()) for t in asked)

    def queries(self, block: Block) -> Tensor:
        return self.query[block.at].to(self.dtype) * self.problem.scale

    def key_heads(self, block: Block) -> slice | Tensor:
        """The key head of each query head of the block: a slice where heads are not shared, so that no copy is made."""
        group = self.problem.group_size
        if group == 1:
            return block.heads
        first, last = block.heads.start // group, (block.heads.stop - 1) // group
        if first == last:
            return slice(first, last + 1)
        return torch.arange(block.heads.start, block.heads.stop, device=self.problem.device) // group

    def chunk(self, work: Work, queries: Tensor, keys: slice) -> _Chunk:
        block = work.block
        rows = Rows(*(_batch_rows(part, block) for part in self.rows))
        index = torch.arange(keys.start, keys.stop, device=self.problem.device)
        heads = self.key_heads(block)
        tile_keys = self.key[block.batches, heads, keys].to(self.dtype)
        tile_values = self.value[block.batches, heads, keys].to(self.dtype)
        # Taken from the chunk's own start, both terms are small integers, exact in float32.
        stand = (rows.position - keys.start).to(self.dtype).unsqueeze(-1)
        distance = (stand - (index - keys.start).to(self.dtype)).abs_().unsqueeze(1)
        scores = queries @ tile_keys.transpose(-1, -2)
        scores.addcmul_(self.slopes[block.batches, block.heads, None, None], distance, value=-1)
        # Only the keys that some row of the block does not see need a mask.
        low = min(max(work.seen_by_all.start - keys.start, 0), len(index))
        high = min(max(work.seen_by_all.stop - keys.start, low), len(index))
        for edge in (slice(0, low), slice(high, len(index))):
            if edge.start < edge.stop:
                scores[..., edge].masked_fill_(~visible(rows, index[edge]).unsqueeze(1), -torch.inf)
        seen = None
        if not self.finite and (low, high) != (0, len(index)):
            seen = visible(rows, index).unsqueeze(1)
        return _Chunk(scores, distance, tile_keys, tile_values, seen, self._drop(block, index))

    def _drop(self, block: Block, index: Tensor) -> Tensor | None:
        problem = self.problem
        if problem.dropout_p == 0.0:
            return None
        assert problem.seed is not None
        batches, heads, rows = (torch.arange(part.start, part.stop, device=problem.device) for part in block.at)
        return keep_scale(problem.seed, problem.dropout_p, problem.num_heads, batches, heads, rows, index).to(
            self.dtype
        )


def _total(weights: Tensor, terms: Tensor, seen: Tensor | None) -> Tensor:
    return weights @ terms if seen is None else weighted_sum(weights, terms, seen)


def _batch_rows(part: Tensor, block: Block) -> Tensor:
    return part[block.batches if part.shape[0] > 1 else slice(0, 1), block.queries]


def _sweep(tiles: _Tiles, work: Work) -> tuple[Tensor, Tensor]:
    """Output and lse of one block of queries."""
    queries = tiles.queries(work.block)
    if not work.chunks:
        rows = queries.shape[:-1]
        return queries.new_zeros((*rows, tiles.problem.value_dim)), queries.new_full(rows, -torch.inf)
    done: _Partial | None = None
    for keys in work.chunks:
        chunk = tiles.chunk(work, queries, keys)
        peak = chunk.scores.amax(-1, keepdim=True)
        if done is not None:
            peak = torch.maximum(done.peak, peak)
        # A row that has seen nothing yet stands at -inf, and -inf less -inf is no number.
        base = torch.where(peak == -torch.inf, 0.0, peak)
        weights = chunk.scores.sub_(base).exp_()
        mass = weights.sum(-1, keepdim=True)
        if chunk.drop is not None:
            weights = weights * chunk.drop
        out = _total(weights, chunk.values, chunk.seen)
        if done is not None:
            fade = torch.exp(done.peak - base)
            mass += done.mass * fade
            out += done.out * fade
        done = _Partial(peak, mass, out)
    assert done is not None
    out = torch.where(done.mass == 0.0, 0.0, done.out / done.mass)
    return out, (done.peak + torch.log(done.mass)).squeeze(-1)


def _sweep_back(tiles: _Tiles, work: Work, saved: Saved, grad_out: Tensor, grad_lse: Tensor, grads: Gradients) -> None:
    """Adds one block of queries' share to ``grads``, from probabilities recomputed out of the lse."""
    block, problem = work.block, tiles.problem
    queries = tiles.queries(block)
    lse = saved.lse[block.at].unsqueeze(-1)
    massless = lse == -torch.inf
    lse = lse.masked_fill(massless, torch.inf)
    flow = grad_out[block.at].to(tiles.dtype).masked_fill(massless, 0.0)
    # d score = P * (dP - mean), with the gradient of lse, which is P itself, folded into the mean.
    mean = (flow * saved.out[block.at].to(tiles.dtype)).sum(-1, keepdim=True) - grad_lse[block.at].unsqueeze(-1)
    mean = mean.masked_fill(massless, 0.0)
    grad_query = torch.zeros_like(queries)
    # As in the reference: what a row's gradients of scores add up to beside that of its lse, and its mean distance.
    stray = -grad_lse[block.at].masked_fill(massless.squeeze(-1), 0.0)
    away = torch.zeros_like(stray)
    for keys in work.chunks:
        chunk = tiles.chunk(work, queries, keys)
        weights = chunk.scores.sub_(lse).exp_()
        grad_weights = flow @ chunk.values.transpose(-1, -2)
        kept = weights
        if chunk.drop is not None:
            grad_weights = grad_weights * chunk.drop
            kept = weights * chunk.drop
        grad_scores = grad_weights.sub_(mean).mul_(weights)
        seen_by_key = None
        if chunk.seen is not None:
            grad_scores = grad_scores.masked_fill_(~chunk.seen, 0.0)
            seen_by_key = chunk.seen.transpose(-1, -2)
        grad_query += _total(grad_scores, chunk.keys, chunk.seen)
        add_key = _total(grad_scores.transpose(-1, -2), queries, seen_by_key)
        add_value = _total(kept.transpose(-1, -2), flow, seen_by_key)
        _add_to_key_heads(grads.key, add_key, block, keys, problem.group_size)
        _add_to_key_heads(grads.value, add_value, block, keys, problem.group_size)
        if not problem.learned_slopes:
            continue
        stray += grad_scores.sum(-1)
        # In place: the chunk's scores and weights are not needed again.
        grads.slopes[block.batches, block.heads] -= grad_scores.mul_(chunk.distance).sum((-1, -2))
        away += chunk.distance.mul(weights).sum(-1)
    if problem.learned_slopes:
        grads.slopes[block.batches, block.heads] += (stray * away).sum(-1)
    grads.query[block.at] = (grad_query * problem.scale).to(grads.query.dtype)


def _add_to_key_heads(total: Tensor, part: Tensor, block: Block, keys: slice, group: int) -> None:
    if group == 1:
        total[block.batches, block.heads, keys] += part
        return
    heads = torch.arange(block.heads.start, block.heads.stop, device=total.device) // group
    total[block.batches, :, keys].index_add_(1, heads, part)
