"""From the logits of the next token to the token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alibi_attention.lab.errors import LabError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; the steps apply in this order.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token, which top_k and top_p always leave.
        top_k: only the k likeliest tokens; 0 for all.
        top_p: only the likeliest tokens that together have this probability, and at least one; 1 for all.

    Raises:
        LabError: for a number outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name, holds, expected, remedy in (
            ("temperature", 0.0 <= self.temperature < float("inf"), "0 or more", "0 takes the likeliest token"),
            ("top_k", self.top_k >= 0, "0 or more", "0 allows every token"),
            ("top_p", 0.0 < self.top_p <= 1.0, "a probability above 0 and up to 1", "1 allows every token"),
        ):
            if not holds:
                raise LabError(name, expected=expected, got=f"{getattr(self, name)}", remedy=remedy)

    def choose(self, logits: Tensor, generator: torch.Generator) -> int:
        """A token from logits (vocabulary,).

        Raises:
            LabError: for logits that are not numbers.
        """
        logits = logits.float().cpu()
        # That of NaN is NaN. Of an infinity beside numbers nothing could be drawn either.
        if not bool(logits.amax().isfinite()):
            raise LabError(
                "source", expected="a model whose logits are numbers", got="NaN or infinity",
                remedy="its weights may be damaged, or its dtype too small: try --dtype float32",
            )  # fmt: skip
        if self.temperature == 0.0:
            return int(logits.argmax())
        return int(torch.multinomial(self.probabilities(logits), 1, generator=generator))

    def probabilities(self, logits: Tensor) -> Tensor:
        """(vocabulary,) float32, what tokens are drawn by where the temperature is above 0."""
        # Less the maximum first: a tiny temperature must not turn large logits into infinities. It may be too small for
        # float32, which would divide by 0.
        logits = ((logits - logits.amax()).double() / self.temperature).float()
        if 0 < self.top_k < len(logits):
            top = logits.topk(self.top_k)
            logits = torch.full_like(logits, -torch.inf).scatter(0, top.indices, top.values)
        shares = logits.softmax(0)
        if self.top_p < 1.0:
            ranked, order = shares.sort(descending=True)
            before = ranked.cumsum(0) - ranked
            shares = shares.clone()
            shares[order[before >= self.top_p]] = 0.0
        return shares / shares.sum()
