"""The certified horizon: which tiles of keys cannot change the result by more than rounding, known beforehand.

The bias falls linearly, so for a row at position p every key at distance >= n holds at most

    exp(a * |q| * K) * e^(-m n) / (1 - e^-m)                    a = scale, K = the largest key norm

of unnormalised mass. Tiles are skipped once such a bound, summed over all of them, is below ``tolerance`` times a lower
bound on the mass the row has. Three refinements make it tight: keys are taken about their mean (softmax ignores what
q . mean adds to a whole row), K is kept per block so that an old outlier fades with its distance, and the lower bound
is Jensen's inequality over the nearest 2/m keys. docs/maths.md has the theorem and its proof.
"""

from alibi_attention.horizon.plan import is_worthwhile, plan_tiles
from alibi_attention.horizon.tiles import BLOCK_K, BLOCK_Q, blocks_of, by_query_block

__all__ = ["BLOCK_K", "BLOCK_Q", "blocks_of", "by_query_block", "is_worthwhile", "plan_tiles"]
