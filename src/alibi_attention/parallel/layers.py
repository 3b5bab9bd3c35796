"""Layers whose sequence, or whose heads, several processes share."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from alibi_attention.module import ALiBiAttention
from alibi_attention.parallel.agreement import agree, device_of, process_group
from alibi_attention.parallel.context import attend_together

Model = TypeVar("Model", bound=nn.Module)


class SharedContext:
    """`context_attention` as a layer calls its attention; no copy of it is made, as none is of its group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        # How often it was called, whether a call of a model is under way, and where the first and the last token here
        # stand, if anybody says so.
        self.calls = 0
        self.busy = False
        self.positions: tuple[float, float] | None = None

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, *, is_causal: bool, key_mask: Tensor | None,
        dropout_p: float, scale: float | None = None, window: tuple[int | None, int | None] | None = None,
        refusal: ValueError | None = None,
    ) -> Tensor:  # fmt: skip
        """Attend over the parts of all processes.

        Raises:
            ValueError: ``refusal``, the layer's own; for padding and dropout. In every case once the others know of it.
        """
        self.calls += 1
        if key_mask is not None:
            refusal = ValueError(
                "key_mask: expected None where processes share a sequence, got a mask; cut the padding off before it "
                "is divided"
            )
        if dropout_p > 0.0:
            refusal = ValueError(
                f"dropout: expected 0 where processes share a sequence, got {dropout_p}; which weights are dropped "
                "would depend on how it is divided: build the layer without dropout, or call eval()"
            )
        out: Tensor = attend_together(
            query, key, value, slopes, is_causal=is_causal, scale=scale, window=window, group=self.group,
            refusal=refusal, positions=self.positions,
        )  # fmt: skip
        return out

    def refuse(self, tensor: Tensor | None) -> None:
        """Tell the others, who wait for this process's attention, that there will be none.

        Args:
            tensor: any that lies where its queries would.
        """
        agree(None, device_of(tensor, self.group), self.group, None, trains=False)

    def __deepcopy__(self, memo: Any) -> SharedContext:
        return self

    def __reduce__(self) -> Any:
        raise TypeError(
            "model: expected one that no processes share, got one after split_context, whose group belongs to this "
            "process; save its state_dict()"
        )


def split_context(model: Model, group: dist.ProcessGroup | None = None) -> Model:
    """Have every `ALiBiAttention` of a model attend over the parts of a sequence that the processes of a group have.

    Each process then runs the model on its own tokens, (batch, tokens here, embed_dim), in the order of ranks. All else
    in a decoder is done token by token and needs no change; gradients of parameters are of the tokens here, and are to
    be added up as in data parallelism (DistributedDataParallel takes their mean).

    Args:
        model: any module that contains `ALiBiAttention` layers; changed in place. Parameters are left alone.
        group: of processes; all by default.

    Returns:
        model.

    Raises:
        ValueError: where there is no such layer, or no group.
    """
    layers, found = _layers(model), process_group(group)
    for layer in layers:
        vars(layer)["attention"] = SharedContext(found)
    return model


def shard_heads(model: Model, mesh: DeviceMesh) -> Model:
    """Divide the heads of every `ALiBiAttention` of a model among the processes of a mesh (tensor parallelism).

    ::

        rank r of n     heads r * H / n to (r + 1) * H / n, with *their* slopes; k and v heads likewise
        out             the sum over ranks of out_proj of their heads, in every process

    Projections become those of torch.distributed.tensor.parallel, by columns and, behind attention, by rows; learned
    slopes a DTensor divided by heads. Each process runs the model on the same tokens.

    Args:
        model: any module that contains `ALiBiAttention` layers, the same weights in every process; changed in place.
        mesh: of one dimension.

    Returns:
        model.

    Raises:
        ValueError: where there is no such layer, or heads or key heads cannot be divided by the number of processes.
    """
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    layers = _layers(model)
    if not isinstance(mesh, DeviceMesh) or mesh.ndim != 1:
        got = f"one of {mesh.ndim}" if isinstance(mesh, DeviceMesh) else repr(mesh)
        raise ValueError(f"mesh: expected a DeviceMesh of one dimension, got {got}; take a slice of it, by its name")
    size, rank = mesh.size(), mesh.get_local_rank()
    for layer in layers:
        if layer.is_sharded:
            raise ValueError("model: expected heads that are not divided yet, got some that are; call this once")
        if layer.dropout > 0.0:
            raise ValueError(
                f"model: expected attention without dropout, got {layer.dropout}; processes with one seed would drop "
                "the same weights of different heads: build the layers with dropout=0"
            )
        for name in ("num_heads", "num_kv_heads"):
            if getattr(layer, name) % size:
                raise ValueError(
                    f"mesh: expected a size that divides {name}, {getattr(layer, name)}, got {size}; a head is not "
                    "divided: use fewer processes"
                )
    for layer in layers:
        columns, rows = ColwiseParallel(), RowwiseParallel()
        plan = {"q_proj": columns, "k_proj": columns, "v_proj": columns, "out_proj": rows}
        parallelize_module(layer, mesh, plan)
        name = layer.slopes_name
        own = slice(rank * layer.num_heads // size, (rank + 1) * layer.num_heads // size)
        layer.initial_slopes = layer.initial_slopes[own].clone()
        held = getattr(layer, name)
        if layer.learned_slopes:
            divided = distribute_tensor(held.detach(), mesh, [Shard(0)])
            layer.register_parameter(name, nn.Parameter(divided, requires_grad=held.requires_grad))
        else:
            layer.register_buffer(name, held[own].clone(), persistent=False)
        layer.num_heads, layer.num_kv_heads = layer.num_heads // size, layer.num_kv_heads // size
        layer.is_sharded = True
    return model


def _layers(model: nn.Module) -> list[ALiBiAttention]:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    found = [module for module in model.modules() if isinstance(module, ALiBiAttention)]
    if not found:
        raise ValueError(
            f"model: expected ALiBiAttention layers, got a {type(model).__name__} without any; "
            "integrations.transformers has a split_context for models of Transformers, and "
            "context_attention(query, key, value) is for attention of your own"
        )
    return found
