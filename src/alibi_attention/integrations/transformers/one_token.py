"""Linear layers of one token: a step of generation is bound by how fast weights are read."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every
from transformers.models.falcon.modeling_falcon import FalconLinear, FalconMLP
from transformers.models.mpt.modeling_mpt import MptMLP

# Whatever else a Linear is (quantised, adapted, put together of parts) has a forward of its own.
_PLAIN = (nn.Linear, FalconLinear)


def through(layer: nn.Module, hidden: Tensor) -> Tensor:
    """``layer(hidden)``, of a single token in bfloat16 on a CPU as the product of a matrix and a vector.

    torch takes a linear layer for a product of matrices whatever the number of tokens, and oneDNN's in bfloat16 reads
    the weights at less than half the speed where there is one (docs/kernel-log.md). Sums are in float32 and rounded
    once in both; a FalconLinear by itself rounds once more before it adds its bias.
    """
    if (
        hidden.dtype != torch.bfloat16
        or hidden.device.type != "cpu"
        or not isinstance(layer, nn.Linear)
        or type(layer) not in _PLAIN
        or hidden.numel() != layer.in_features
        or layer.weight.dtype != torch.bfloat16
        or type(layer.weight) is not nn.Parameter
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or is_watched(layer)
    ):
        out: Tensor = layer(hidden)
        return out
    product = _product if torch.compiler.is_compiling() else _matrix_vector
    return product(layer.weight, layer.bias, hidden.reshape(-1)).view(*hidden.shape[:-1], layer.out_features)


def _matrix_vector(weight: Tensor, bias: Tensor | None, vector: Tensor) -> Tensor:
    return torch.mv(weight, vector) if bias is None else torch.addmv(bias, weight, vector)


# Inductor takes a product of matrix and vector apart, into a sum that is slower than either.
_product = torch.library.custom_op(
    "alibi_attention::matrix_vector", _matrix_vector, mutates_args=(), device_types="cpu"
)  # fmt: skip


@_product.register_fake
def _(weight: Tensor, bias: Tensor | None, vector: Tensor) -> Tensor:  # noqa: ARG001
    return vector.new_empty(weight.shape[0])


def is_watched(module: nn.Module) -> bool:
    """Whether anything would see the difference: hooks, of the module or of all, or a forward put over its own."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    of_all = every._global_forward_hooks or every._global_forward_pre_hooks
    return bool(hooks or of_all or "forward" in vars(module) or hasattr(module, "_hf_hook"))


class OneTokenMptMLP(MptMLP):  # type: ignore[misc]
    """MptMLP, which reads the weights faster for a single token."""

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        """As MptMLP."""
        out = through(self.down_proj, self.act(through(self.up_proj, hidden_states)))
        return nn.functional.dropout(out, p=self.hidden_dropout, training=self.training) + residual


class OneTokenFalconMLP(FalconMLP):  # type: ignore[misc]
    """FalconMLP, which reads the weights faster for a single token."""

    def forward(self, x: Tensor) -> Tensor:
        """As FalconMLP."""
        return through(self.dense_4h_to_h, self.act(through(self.dense_h_to_4h, x)))
