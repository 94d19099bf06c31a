"""The pace of a training run: how much time is left, and the learning rate."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_fovea.training.recipe import Recipe

_WARM_UP = 0.03  # share of the steps over which the learning rate rises


class Clock:
    """Tells when the time is over, if there is a limit."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._began = time.perf_counter()

    @property
    def _spent(self) -> float:
        return time.perf_counter() - self._began

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return self._seconds is not None and self._spent >= self._seconds

    def place(self, step: int, steps: int) -> tuple[float, float]:
        """Where a step stands, and where the last one does."""
        if self._seconds is None or not step:
            return step, steps
        # As many steps fit into the time as went by until now, in proportion.
        return step, min(steps, max(step + 1, step * self._seconds / self._spent))

    def left(self, seconds: float) -> float:
        """Shorten an estimate to what the limit leaves."""
        if self._seconds is None:
            return seconds
        return min(seconds, max(0.0, self._seconds - self._spent))


def rate_at(recipe: Recipe, step: float, steps: float) -> float:
    """Tell the learning rate of a step, of so many."""
    if recipe.schedule == "constant":
        return recipe.learning_rate
    warm = max(1, int(_WARM_UP * steps))
    if step < warm:
        return recipe.learning_rate * (step + 1) / warm
    fraction = (step - warm) / max(1, steps - warm)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * fraction))
