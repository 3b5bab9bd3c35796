"""The slopes m_h: how steeply each head's attention falls with distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

SlopeScheme = Literal["geometric", "interleaved"]
SlopeScaling = Literal["linear", "dynamic", "ntk"]


# 2 ** -126 is the least normal float32: a steeper exponent would give slopes of 0.
_MAX_BIAS_MAX = 126


def alibi_slopes(num_heads: int, scheme: SlopeScheme = "geometric", bias_max: float = 8.0) -> Tensor:
    """The preset slopes of ALiBi, one per head.

    ``geometric`` is the text of the paper, for every head count H and h = 1..H::

        m_h = 2 ** (-bias_max * h / H)

    ``interleaved`` is what the paper's released code does, and with it BLOOM, MPT and Falcon. It equals ``geometric``
    where H is a power of two. Otherwise, with P the largest power of two not above H, the slopes of P heads come first,
    followed by every second slope of 2P heads (the 1st, 3rd, 5th, ...) until there are H.

    Args:
        num_heads: H, at least 1.
        scheme: ``"geometric"`` or ``"interleaved"``.
        bias_max: the exponent of the flattest slope, 2 ** -bias_max; 8 in the paper, ``alibi_bias_max`` in MPT.

    Returns:
        (num_heads,) float32 on the CPU, in nats per token of distance.

    Raises:
        ValueError: for a head count below 1, an unknown scheme, or a bias_max outside (0, 126].

    Source: Press, Smith, Lewis, "Train Short, Test Long", ICLR 2022, section 3.
    """
    if not isinstance(num_heads, int) or isinstance(num_heads, bool) or num_heads < 1:
        raise ValueError(f"num_heads: expected an integer of at least 1, got {num_heads!r}")
    if not isinstance(bias_max, (int, float)) or not 0 < bias_max <= _MAX_BIAS_MAX:
        raise ValueError(
            f"bias_max: expected a number above 0 and at most {_MAX_BIAS_MAX}, got {bias_max!r}; the paper uses 8.0"
        )
    if scheme == "geometric":
        values = _geometric(num_heads, bias_max)
    elif scheme == "interleaved":
        power = 1 << (num_heads.bit_length() - 1)
        values = _geometric(power, bias_max)
        values += _geometric(2 * power, bias_max)[0::2][: num_heads - power]
    else:
        raise ValueError(f"scheme: expected one of {get_args(SlopeScheme)}, got {scheme!r}")
    return torch.tensor(values, dtype=torch.float32, device="cpu")


def _geometric(num_heads: int, bias_max: float) -> list[float]:
    return [2.0 ** (-bias_max * h / num_heads) for h in range(1, num_heads + 1)]


def scale_slopes(slopes: Tensor, method: SlopeScaling, *, train_length: int, length: int) -> Tensor:
    """Flatten slopes so that a model trained at one length reaches further at another, without training.

    With a = length / train_length::

        linear   m_h / a                       position interpolation, whatever the length
        dynamic  m_h / max(a, 1)               the same, but shorter inputs are left as they were trained
        ntk      m_h / max(a, 1) ** t_h        t_h = 0 for the steepest head, 1 for the flattest

    In ``ntk`` the exponent is the head's place on the logarithmic scale of the slopes,
    t_h = (ln m_max - ln m_h) / (ln m_max - ln m_min), which is (h - 1) / (H - 1) for geometric slopes and is defined
    for slopes in any order. Where all slopes are equal, and for a single head, no head is flatter than another to
    carry the distance, so t = 1.

    Args:
        slopes: any shape ending in the heads, (num_heads,) or (batch, num_heads); positive for ``ntk``.
        method: ``"linear"``, ``"dynamic"`` or ``"ntk"``.
        train_length: the length, in tokens, the model was trained at.
        length: the length, in tokens, it is to be used at.

    Returns:
        The scaled slopes, same shape and dtype. Differentiable in ``slopes``; the exponents of ``ntk`` are held
        constant.

    Raises:
        ValueError: for an unknown method, a length below 1, empty slopes, or non-positive slopes with ``ntk``.

    Sources: Al-Khateeb et al., "Position Interpolation Improves ALiBi Extrapolation", arXiv 2310.13017 (linear,
    dynamic); the NTK-ALiBi rule as used with BLOOM (ntk).
    """
    for name, value in (("train_length", train_length), ("length", length)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    if not isinstance(slopes, Tensor):
        raise ValueError(f"slopes: expected a torch.Tensor, got {type(slopes).__name__}; make it one first")
    if slopes.dim() < 1 or slopes.shape[-1] == 0:
        raise ValueError(f"slopes: expected (..., num_heads) with at least one head, got {tuple(slopes.shape)}")
    if not slopes.dtype.is_floating_point:
        raise ValueError(f"slopes: expected a floating-point dtype, got {slopes.dtype}")
    ratio = length / train_length
    if method == "linear":
        return slopes / ratio
    ratio = max(ratio, 1.0)
    if method == "dynamic":
        return slopes / ratio
    if method == "ntk":
        # On ``meta`` there are no values to look at.
        if not slopes.is_meta and bool((slopes <= 0).any()):
            raise ValueError(
                "slopes: method 'ntk' places heads on the logarithm of their slopes and needs them all positive, "
                f"got a minimum of {slopes.min().item():g}; use 'linear' or 'dynamic'"
            )
        place = slopes.detach().double().log()
        steepest = place.amax(-1, keepdim=True)
        span = steepest - place.amin(-1, keepdim=True)
        exponent = torch.where(span > 0, (steepest - place) / span.clamp_min(1e-300), 1.0)
        return (slopes.double() * ratio**-exponent).to(slopes.dtype)
    raise ValueError(f"method: expected one of {get_args(SlopeScaling)}, got {method!r}")


def slope_spans(slopes: Tensor, nats: Sequence[float] = (1.0, 5.0, 10.0)) -> Tensor:
    """The distance, in tokens, at which the bias alone has taken each number of nats from a score: nats / m_h.

    Args:
        slopes: (num_heads,), in nats per token.
        nats: the losses to tabulate; 10 nats leave a key e^-10 = 0.005% of the weight it would have nearby.

    Returns:
        (num_heads, len(nats)) float64; infinite for slopes that do not fall (m <= 0).

    Raises:
        ValueError: if slopes is not one-dimensional.
    """
    if not isinstance(slopes, Tensor):
        raise ValueError(f"slopes: expected a torch.Tensor, got {type(slopes).__name__}; make it one first")
    if slopes.dim() != 1:
        raise ValueError(f"slopes: expected (num_heads,), got {tuple(slopes.shape)}")
    falling = slopes.detach().double().unsqueeze(-1)
    levels = torch.tensor(list(nats), dtype=torch.float64, device=slopes.device)
    return torch.where(falling > 0, levels / falling, torch.inf)
