"""What work in progress is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from napari_fovea.project.identity import ImageId


@dataclass(frozen=True)
class Strokes:
    """What was painted on an image.

    Attributes
    ----------
    image : ImageId
        What was painted on.
    layer : str
        Name of the labels layer.
    labels : ndarray of int
        The whole layer; 0 is not painted.
    """

    image: ImageId
    layer: str
    labels: NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Step:
    """One model in the history.

    Attributes
    ----------
    name : str
        What it is called.
    mode : str
        ``"start"`` for a model one began with, or how it learned: ``"instant"`` or
        ``"thorough"``.
    before, after : float or None
        Scores of the model it came from and of itself, on strokes held out.
    date : str
        When, in ISO format.
    file : str or None
        Its file, such as ``"models/001.safetensors"``; None for the model that the
        project calls its base.
    """

    name: str
    mode: Literal["instant", "thorough", "start"]
    before: float | None
    after: float | None
    date: str
    file: str | None = None


@dataclass(frozen=True)
class Project:
    """Strokes, classes, settings, and the models that learned from them.

    Attributes
    ----------
    base : str
        Name or file of the model one began with.
    strokes : tuple of Strokes
        What was painted.
    classes : dict
        Name of each label.
    settings : dict
        Anything else that JSON can hold.
    steps : tuple of Step
        History of models, oldest first.
    current : int
        Which of the steps is in use; -1 if none.
    """

    base: str
    strokes: tuple[Strokes, ...] = ()
    classes: dict[int, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    current: int = -1
