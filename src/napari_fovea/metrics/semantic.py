"""How well classes of pixels agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def dice(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Dice coefficient of two masks, 2·|A ∩ B| / (|A| + |B|); 1 if both are empty."""
    found, true = np.asarray(prediction, dtype=bool), np.asarray(truth, dtype=bool)
    total = int(found.sum()) + int(true.sum())
    return 2 * int((found & true).sum()) / total if total else 1.0
