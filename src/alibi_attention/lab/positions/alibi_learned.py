"""ALiBi whose slopes are trained."""

from __future__ import annotations

from torch import Tensor, nn

from alibi_attention.lab.positions.alibi import Alibi


class AlibiLearned(Alibi):
    """As ALiBi, from the geometric slopes on trained with everything else: one slope a head, shared by the layers.

    What is trained is the logarithm, so that a step changes a slope by a share of itself and none turns negative.
    """

    name = "alibi-learned"
    title = "ALiBi, learned"

    def _keep(self, slopes: Tensor) -> None:
        self.log_slopes = nn.Parameter(slopes.log())

    @property
    def slopes(self) -> Tensor:  # type: ignore[override]
        return self.log_slopes.float().exp()
