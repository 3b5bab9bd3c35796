"""The attention layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from alibi_attention.cache import HorizonCache, KVCache
from alibi_attention.call import autocast_is_on
from alibi_attention.checks.options import check_flag
from alibi_attention.checks.slopes import check_slopes
from alibi_attention.checks.tensors import check_tensor
from alibi_attention.checks.values import is_integer, is_number
from alibi_attention.ops import alibi_attention
from alibi_attention.slopes import alibi_slopes

if TYPE_CHECKING:
    from typing_extensions import Self


class ALiBiAttention(nn.Module):
    """Multi-head self-attention whose only sense of position is the linear bias.

    ::

        q, k, v = q_proj(x), k_proj(x), v_proj(x)           split into heads
        out     = out_proj(concat_h softmax(q_h k_h^T / sqrt(d) - m_h |i - j|) v_h)

    The four projections are created in the order q_proj, k_proj, v_proj, out_proj, so a seed gives the weights of four
    nn.Linear made in that order; unless asked for they have no bias. Preset slopes are float32 whatever the dtype of
    the module, and no part of the state dict; learned slopes are the parameter ``slopes``, or ``log_slopes`` where they
    are kept positive, float32 too, and left out of weight decay by `weight_decay_groups`.

    Args:
        embed_dim: E, a multiple of num_heads.
        num_heads: H; the head dimension is E / H.
        dropout: probability of dropping an attention weight, in training mode only: ``eval()`` turns it off.
        num_kv_heads: key and value heads, a divisor of num_heads, each shared by num_heads / num_kv_heads query
            heads; num_heads by default.
        is_causal: whether a token is kept from those after it.
        slopes: (num_heads,) float32 to use, or the initial value of learned ones; `alibi_slopes(num_heads)` by default.
        learned_slopes: True makes the slopes a parameter, "positive" their logarithm, so that no step can turn a fall
            into a rise.
        bias: whether the projections add a learned bias, as nn.MultiheadAttention's do by default.
        device, dtype: of the projections, as in nn.Linear; slopes are float32 on the same device.

    Attributes:
        q_proj, k_proj, v_proj, out_proj: nn.Linear; k_proj and v_proj give num_kv_heads * head_dim features.
        slopes: (num_heads,) float32, nats per token; `head_slopes` gives them however they are kept.
        log_slopes: (num_heads,) float32, in place of ``slopes`` with learned_slopes="positive".
        head_dim: E / H.
        embed_dim, num_heads, num_kv_heads, dropout, is_causal, learned_slopes, bias: as given.

    Raises:
        ValueError: for sizes that do not divide, a probability outside [0, 1), or slopes of another shape or dtype.

    Source: Press, Smith, Lewis, "Train Short, Test Long", ICLR 2022.
    """

    # What attends; `parallel` puts another in its place.
    attention: Callable[..., Tensor] = staticmethod(alibi_attention)
    # Whether the heads here are some of several processes' heads.
    is_sharded = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        *,
        num_kv_heads: int | None = None,
        is_causal: bool = True,
        slopes: Tensor | None = None,
        learned_slopes: bool | Literal["positive"] = False,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        for name, size in (
            ("embed_dim", embed_dim),
            ("num_heads", num_heads),
            ("num_kv_heads", num_kv_heads),
        ):
            if not is_integer(size) or size < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {size!r}")
        if embed_dim % num_heads != 0:
            raise ValueError(
                f"embed_dim: expected a multiple of num_heads, {num_heads}, got {embed_dim}; "
                f"the nearest are {embed_dim // num_heads * num_heads} and {-(-embed_dim // num_heads) * num_heads}"
            )
        if num_heads % num_kv_heads != 0:
            raise ValueError(f"num_kv_heads: expected a divisor of num_heads, {num_heads}, got {num_kv_heads}")
        if not (is_number(dropout) and 0.0 <= dropout < 1.0):
            raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout!r}")
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, num_kv_heads
        check_flag("bias", bias)
        self.head_dim, self.bias = embed_dim // num_heads, bias
        self.dropout, self.is_causal, self.learned_slopes = dropout, is_causal, learned_slopes

        def linear(out_features: int) -> nn.Linear:
            return nn.Linear(embed_dim, out_features, bias=bias, device=device, dtype=dtype)

        kv_dim = num_kv_heads * self.head_dim
        self.q_proj = linear(embed_dim)
        self.k_proj = linear(kv_dim)
        self.v_proj = linear(kv_dim)
        self.out_proj = linear(embed_dim)

        if learned_slopes not in (False, True, "positive"):
            raise ValueError(f"learned_slopes: expected False, True or 'positive', got {learned_slopes!r}")
        if slopes is None:
            slopes = alibi_slopes(num_heads)
        check_slopes(slopes, 1, num_heads)
        if slopes.is_meta:
            raise ValueError("slopes: expected values, got a meta tensor; build them with torch.device('cpu')")
        if learned_slopes == "positive" and not bool((slopes > 0).all()):
            raise ValueError(
                "slopes: expected all positive with learned_slopes='positive', "
                f"got a minimum of {slopes.min().item():g}; learned_slopes=True takes any sign"
            )
        # On the CPU whatever the default device: constructing on the meta device cannot lose them.
        initial = slopes.detach().to(device="cpu", dtype=torch.float32, copy=True).reshape(num_heads)
        self.initial_slopes = initial.log() if learned_slopes == "positive" else initial
        home = self.q_proj.weight.device
        if learned_slopes:
            parameter = nn.Parameter(self.initial_slopes.to(home, copy=True))
            self.register_parameter(self.slopes_name, parameter)
        else:
            self.register_buffer(self.slopes_name, self.initial_slopes.to(home, copy=True), persistent=False)
            self.register_load_state_dict_post_hook(_give_slopes_a_home)  # type: ignore[no-untyped-call]

    @property
    def slopes_name(self) -> str:
        """The attribute that holds the slopes, or their logarithm."""
        return "log_slopes" if self.learned_slopes == "positive" else "slopes"

    def head_slopes(self) -> Tensor:
        """The slopes in use, (num_heads,) float32; differentiable where they are learned."""
        stored: Tensor = getattr(self, self.slopes_name)
        if self.is_sharded and self.learned_slopes:
            stored = stored.to_local()  # type: ignore[attr-defined]
        return stored.exp() if self.learned_slopes == "positive" else stored

    def forward(
        self, x: Tensor, *, key_mask: Tensor | None = None, cache: KVCache | HorizonCache | None = None
    ) -> Tensor:
        """Attend over a batch of sequences.

        Args:
            x: (batch, seq_len, embed_dim).
            key_mask: (batch, seq_len) bool, True for tokens and False for padding (left or right).
            cache: what came before, to which x is appended: x then continues the sequences the cache holds. If
                attending fails, x is taken out of this cache again. Caches of earlier layers still hold theirs: crop
                them before repeating the step.

        Returns:
            (batch, seq_len, embed_dim). Rows of padding hold no meaningful value.

        Raises:
            ValueError: for x or key_mask of another shape, or a cache where attention is not causal or drops weights.
        """
        check_tensor("x", x)
        if x.dim() != 3 or x.shape[-1] != self.embed_dim:
            raise ValueError(f"x: expected (batch, seq_len, {self.embed_dim}), got shape {tuple(x.shape)}")
        dtype = self.q_proj.weight.dtype
        if x.dtype != dtype and not (x.is_floating_point() and autocast_is_on(x.device.type)):
            raise ValueError(
                f"x: expected {dtype}, the layer's own, got {x.dtype}; convert x with x.to({dtype}), or the layer, or "
                "run under torch.autocast"
            )
        if not (cache is None or isinstance(cache, (KVCache, HorizonCache))):
            raise ValueError(f"cache: expected a KVCache or a HorizonCache, got {type(cache).__name__}")
        query = self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        key = self.k_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim)).transpose(1, 2)
        value = self.v_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim)).transpose(1, 2)
        if cache is not None:
            return self._continue(cache, query, key, value, key_mask)
        dropout_p = self.dropout if self.training else 0.0
        slopes = self.head_slopes()
        return self._project(
            self.attention(query, key, value, slopes, is_causal=self.is_causal, key_mask=key_mask, dropout_p=dropout_p)
        )

    def _continue(
        self, cache: KVCache | HorizonCache, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None
    ) -> Tensor:
        if "attention" in vars(self):
            raise ValueError(
                "cache: expected None where processes share a sequence, got one; generate with a model that "
                "split_context has not taken"
            )
        if not self.is_causal:
            raise ValueError(
                "cache: expected with causal attention only, got is_causal=False; attend to all of x at once"
            )
        if self.training and self.dropout > 0.0:
            raise ValueError(
                f"cache: expected without dropout, got dropout={self.dropout} in training; call eval() first"
            )
        before = cache.length
        cache.append(key, value, key_mask=key_mask)
        try:
            return self._project(cache.attend(query, self.head_slopes()))
        except BaseException:
            with suppress(Exception):  # whose cause is the same, most likely: the first error is the one to hear of
                if before:
                    cache.crop(before)
                else:
                    cache.reset()
            raise

    def _project(self, out: Tensor) -> Tensor:
        projected: Tensor = self.out_proj(out.transpose(1, 2).flatten(-2))
        return projected

    def reset_parameters(self) -> None:
        """Give the slopes their initial values back (the projections have their own `reset_parameters`)."""
        with torch.no_grad():
            stored = getattr(self, self.slopes_name)
            (stored.to_local() if self.is_sharded and self.learned_slopes else stored).copy_(self.initial_slopes)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves slopes with the module and leaves their dtype alone: 16 bits would shift whole nats at long range."""
        if self.is_sharded and self.learned_slopes:
            # A DTensor, whose dtype is not to change either: it is made anew where its device does.
            divided: Any = self._parameters.pop(self.slopes_name)
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            local = divided.to_local().detach()
            home = fn(local).device
            if home != local.device:
                local = (self.initial_slopes if local.is_meta else local).to(home)
                made = type(divided.data).from_local(local, divided.device_mesh, divided.placements)
                divided = nn.Parameter(made, requires_grad=divided.requires_grad)
            self._parameters[self.slopes_name] = divided
            return self
        before = getattr(self, self.slopes_name).detach()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after: Tensor = getattr(self, self.slopes_name)
        source = self.initial_slopes if before.is_meta else before
        if not after.is_meta and (not self.learned_slopes or not before.is_meta):
            # Preset ones even where the dtype is right: to_empty leaves anything in them.
            after.data = source.to(device=after.device, dtype=torch.float32)
        if after.grad is not None and after.grad.dtype != torch.float32:
            after.grad = after.grad.float()
        return self

    def extra_repr(self) -> str:
        """The configuration, as printing the module shows it."""
        parts: dict[str, Any] = {"embed_dim": self.embed_dim, "num_heads": self.num_heads}
        if self.num_kv_heads != self.num_heads:
            parts["num_kv_heads"] = self.num_kv_heads
        if self.dropout > 0.0:
            parts["dropout"] = self.dropout
        parts |= {"is_causal": self.is_causal, "learned_slopes": self.learned_slopes}
        if self.bias:
            parts["bias"] = True
        return ", ".join(f"{name}={value}" for name, value in parts.items())


def _give_slopes_a_home(module: ALiBiAttention, _: object) -> None:
    """load_state_dict(assign=True) gives a module built on the meta device its weights, and no buffer."""
    home = module.q_proj.weight.device
    if module.slopes.is_meta and home.type != "meta":
        module.register_buffer("slopes", module.initial_slopes.to(home, copy=True), persistent=False)


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser in which slopes, biases and norms are not decayed.

    They are told by their dimensions: a parameter of fewer than two is not decayed, whatever its name. Decay
    would pull a slope to 0, no sense of position at all, and its logarithm to a slope of 1.

    Args:
        model: any module, with `ALiBiAttention` layers or without.
        weight_decay: for the parameters of two or more dimensions.

    Returns:
        Two groups, ``params`` and ``weight_decay`` each, that hold every parameter requiring a gradient once.

    Raises:
        ValueError: for what is no module, or a decay that is no number of at least 0.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a torch.nn.Module, got {type(model).__name__}; call this once for the whole")
    if not (is_number(weight_decay) and 0.0 <= weight_decay < math.inf):
        raise ValueError(f"weight_decay: expected a finite number of at least 0, got {weight_decay!r}")
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (spared if parameter.dim() < 2 else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
