"""The peers that exist on a GPU, in the forms their makers made fast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from alibi_attention.bench.gpu.cases import GpuTrial
from alibi_attention.bench.gpu.inputs import GpuInputs, full_bias
from alibi_attention.bench.peers_flex import BLOCK, block_mask

Attend = Callable[[], Tensor]


@dataclass(frozen=True)
class GpuPeer:
    """One contestant beside ours.

    Attributes:
        name, title: on the command line and in files; in words.
        prepare: makes the call that is timed; biases, masks and compilation belong here.
        alibi: whether it computes ALiBi at all.
        refuses: the reason it cannot run a trial within so many bytes, or None.
    """

    name: str
    title: str
    prepare: Callable[[GpuTrial, GpuInputs], Attend]
    alibi: bool = True
    refuses: Callable[[GpuTrial, int], str | None] = lambda trial, memory: None  # noqa: ARG005


def _sdpa_with(backend: str) -> Callable[[GpuTrial, GpuInputs], Attend]:
    def prepare(trial: GpuTrial, inputs: GpuInputs) -> Attend:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        chosen = getattr(SDPBackend, backend)
        query, key, value = inputs.query, inputs.key, inputs.value
        causal = trial.queries > 1

        def attend() -> Tensor:
            with sdpa_kernel([chosen]):
                return sdpa(query, key, value, is_causal=causal)

        return attend

    return prepare


def _cudnn_with_mask(trial: GpuTrial, inputs: GpuInputs) -> Attend:  # noqa: ARG001
    from torch.nn.attention import SDPBackend, sdpa_kernel

    query, key, value, bias = inputs.query, inputs.key, inputs.value, full_bias(inputs)

    def attend() -> Tensor:
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
            return sdpa(query, key, value, attn_mask=bias)

    return attend


def _mask_fits(trial: GpuTrial, memory: int) -> str | None:
    need = trial.full_bias_bytes
    if need > memory:
        return f"holds a mask of {need / 2**30:.1f} GiB, over the memory budget of {memory / 2**30:.1f} GiB"
    if need // trial.case.dtype.itemsize >= 1 << 31:
        # Offsets of 32 bits somewhere in a library would fault, and take the process and its time along.
        return "its mask has 2^31 elements or more"
    return None


def _flash_with_slopes(trial: GpuTrial, inputs: GpuInputs) -> Attend:
    # The kernel beneath SDPA: (batch, tokens, heads, dim), slopes in float32, aligned at the lower right.
    query, key, value = (t.transpose(1, 2).contiguous() for t in (inputs.query, inputs.key, inputs.value))
    kernel = torch.ops.aten._flash_attention_forward
    causal = trial.queries > 1

    def attend() -> Tensor:
        out: Tensor = kernel(
            query, key, value, None, None, trial.queries, trial.keys, 0.0, causal, False, alibi_slopes=inputs.slopes
        )[0]
        return out.transpose(1, 2)

    return attend


def _flash_refuses(trial: GpuTrial, memory: int) -> str | None:  # noqa: ARG001
    if trial.case.mode == "training":
        return "torch's flash backward takes no slopes"
    return None


def _flex(trial: GpuTrial, inputs: GpuInputs) -> Attend:
    first = torch.zeros(1, 1, -(-trial.queries // BLOCK), dtype=torch.int64, device=inputs.query.device)
    return _compiled(inputs, _causal_score(inputs), block_mask(trial.queries, trial.keys, first))


def _flex_with_windows(trial: GpuTrial, inputs: GpuInputs) -> Attend:
    found = inputs.certificate
    first = torch.where(found.sink_keys, 0, found.first_key) if found.sink_keys.any() else found.first_key
    mask = block_mask(trial.queries, trial.keys, (first // BLOCK).to(inputs.query.device))
    return _compiled(inputs, _causal_score(inputs), mask)


def _flex_decode(trial: GpuTrial, inputs: GpuInputs) -> Attend:
    slopes, last = inputs.slopes, trial.keys - 1

    def score(value: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:  # noqa: ARG001
        return value - slopes[head] * (last - column)

    return _compiled(inputs, score, None)


def _causal_score(inputs: GpuInputs) -> Callable[..., Tensor]:
    slopes = inputs.slopes

    def score(value: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:  # noqa: ARG001
        return value - slopes[head] * (row - column)

    return score


def _compiled(inputs: GpuInputs, score: Callable[..., Tensor], mask: Any) -> Attend:
    from torch.nn.attention.flex_attention import flex_attention

    kernel = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    query, key, value = inputs.query, inputs.key, inputs.value

    def attend() -> Tensor:
        out: Tensor = kernel(query, key, value, score_mod=score, block_mask=mask)
        return out

    return attend


def _whole_blocks(trial: GpuTrial, memory: int) -> str | None:  # noqa: ARG001
    if trial.queries != trial.keys or trial.keys % BLOCK:
        return f"as many queries as keys, a multiple of {BLOCK}, alone"
    return None


def _one_query(trial: GpuTrial, memory: int) -> str | None:  # noqa: ARG001
    return None if trial.queries == 1 else "one query alone"


def _windows_exist(trial: GpuTrial, memory: int) -> str | None:
    return "every tile is computed here" if trial.case.tolerance == 0.0 else _whole_blocks(trial, memory)


_ALL = (
    GpuPeer("flex", "FlexAttention, compiled, ALiBi as score_mod", _flex, refuses=_whole_blocks),
    GpuPeer(
        "flex-windows", "FlexAttention, given our windows as its block mask", _flex_with_windows,
        refuses=_windows_exist,
    ),
    GpuPeer("flex-decode", "FlexAttention's decoding kernel, compiled, ALiBi", _flex_decode, refuses=_one_query),
    GpuPeer("sdpa-flash", "SDPA, flash, no bias", _sdpa_with("FLASH_ATTENTION"), alibi=False),
    GpuPeer("sdpa-cudnn", "SDPA, cuDNN, no bias", _sdpa_with("CUDNN_ATTENTION"), alibi=False),
    GpuPeer("flash-alibi", "torch's flash kernel with alibi_slopes", _flash_with_slopes, refuses=_flash_refuses),
    GpuPeer("cudnn-mask", "SDPA, cuDNN, ALiBi as its mask", _cudnn_with_mask, refuses=_mask_fits),
)  # fmt: skip
GPU_PEERS: dict[str, GpuPeer] = {peer.name: peer for peer in _ALL}
