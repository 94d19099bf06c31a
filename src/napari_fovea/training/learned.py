"""What learning from strokes tells while and after it learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from napari_fovea.models import Model
    from napari_fovea.training.guard import Scores, Stroke, Verdict
    from napari_fovea.training.painted import PaintedPlane

Mode = Literal["instant", "thorough"]

MODES: tuple[Mode, ...] = ("instant", "thorough")
"""How a model can learn."""


@dataclass(frozen=True, slots=True)
class Learning:
    """How far a refit or a training has come.

    Attributes
    ----------
    phase : str
        ``"looking"``, ``"fitting"`` or ``"training"``.
    step : int
        Planes looked at, fits made, or epochs trained.
    fraction : float
        Estimate of how much is done, in [0, 1].
    loss : float or None
        Of what is learned from.
    score : float or None
        On strokes held out; see `Verdict`.
    seconds_left : float or None
        Estimate; None where nothing can be said.
    device : str
        What computes.
    model : Model or None
        The model as it stands, from thorough learning.
    """

    phase: str
    step: int
    fraction: float
    loss: float | None = None
    score: float | None = None
    seconds_left: float | None = None
    device: str = ""
    model: Model | None = None


@dataclass(frozen=True)
class Tuned:
    """A model that learned from strokes, and how it compares.

    Attributes
    ----------
    model : Model
        With its provenance.
    trunk : Model
        What later refits start from: of a thorough one this very model, of an instant
        one that which it was fitted to.
    verdict : Verdict
        Whether it may take over.
    mode : str
        ``"instant"`` or ``"thorough"``.
    scores : dict
        Score of each stroke when it was held out.
    planes : tuple of PaintedPlane
        What was painted.
    learned : frozenset of Stroke
        Strokes that weights before the last layer have learned: nothing can be held
        out of these any more.
    """

    model: Model
    trunk: Model
    verdict: Verdict
    mode: str
    scores: Scores
    planes: tuple[PaintedPlane, ...]
    learned: frozenset[Stroke] = frozenset()
