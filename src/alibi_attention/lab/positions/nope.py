"""No positions at all."""

from __future__ import annotations

from alibi_attention.lab.positions.base import PositionMethod


class NoPE(PositionMethod):
    """Nothing but the causal mask, from which a decoder can count.

    Sources: Haviv et al., "Transformer Language Models without Positional Encodings Still Learn Positional
    Information", 2022; Kazemnejad et al., "The Impact of Positional Encoding on Length Generalization", 2023.
    """

    name = "nope"
    title = "NoPE"
