"""One sequence, or one layer's heads, over several processes of torch.distributed."""

from alibi_attention.parallel.context import context_attention, context_windows
from alibi_attention.parallel.layers import shard_heads, split_context
from alibi_attention.parallel.windows import ContextWindows

__all__ = ["ContextWindows", "context_attention", "context_windows", "shard_heads", "split_context"]
