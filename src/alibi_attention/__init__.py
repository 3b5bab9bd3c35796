"""ALiBi attention (Press, Smith, Lewis; ICLR 2022): exact, in O(length) memory, at linear cost."""

from alibi_attention.bias import build_alibi_bias
from alibi_attention.merge import merge_attention
from alibi_attention.module import ALiBiAttention
from alibi_attention.ops import alibi_attention
from alibi_attention.slopes import alibi_slopes, scale_slopes

__version__ = "0.1.0"

__all__ = [
    "ALiBiAttention",
    "alibi_attention",
    "alibi_slopes",
    "build_alibi_bias",
    "merge_attention",
    "scale_slopes",
]
