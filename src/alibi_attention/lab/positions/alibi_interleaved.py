"""ALiBi with the slopes of the paper's released code."""

from __future__ import annotations

from alibi_attention.lab.positions.alibi import Alibi


class AlibiInterleaved(Alibi):
    """As ALiBi, with the slopes BLOOM, MPT and Falcon have.

    They differ from the geometric ones only where the number of heads is no power of two.
    """

    name = "alibi-interleaved"
    title = "ALiBi, interleaved"
    scheme = "interleaved"
