"""The one-cycle schedule of learning rate and momentum (Smith 2018, 1803.09820), as in det3d."""

import math
from dataclasses import dataclass

# The last learning rate is the first one divided by this.
_FINAL_DIVISOR = 1e4


@dataclass(frozen=True)
class OneCycle:
    """Learning rate and first Adam moment as functions of the global step.

    Phase 1, steps `[0, int(pct_start * total_steps))`: rate from `lr_max / div_factor` up to
    `lr_max`, momentum from `moms[0]` down to `moms[1]`. Phase 2: rate down to
    `lr_max / div_factor / 1e4`, momentum back up. Both follow a half cosine.
    """

    total_steps: int
    lr_max: float
    moms: tuple[float, float] = (0.95, 0.85)
    div_factor: float = 10.0
    pct_start: float = 0.4

    def at(self, step: int) -> tuple[float, float]:
        """Learning rate and beta1 of a step, counted from 0.

        >>> lr, beta1 = OneCycle(total_steps=10, lr_max=1.0).at(4)
        >>> round(lr, 6), round(beta1, 6)
        (1.0, 0.85)
        """
        peak = int(self.pct_start * self.total_steps)
        low = self.lr_max / self.div_factor
        if step < peak:
            part = step / peak
            return _cosine(low, self.lr_max, part), _cosine(*self.moms, part)
        part = (step - peak) / max(1, self.total_steps - peak)
        lr = _cosine(self.lr_max, low / _FINAL_DIVISOR, part)
        return lr, _cosine(self.moms[1], self.moms[0], part)


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(part, 1.0)))
