"""What the Fine-tune dock does beside the window: learn, and show how it goes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator

    from napari_fovea.models import Model
    from napari_fovea.training.learned import Tuned
    from napari_fovea.training.tuner import Tuner

_SHOW = 2.0  # seconds between views of a model that is being trained


@dataclass
class History:
    """A model one can go back to.

    Attributes
    ----------
    name : str
        As the user reads it.
    tuned : Tuned or None
        None for the model that it all began with.
    live : bool
        Whether it came from a refit after a stroke: the next such takes its place.
    number : int
        Of the step in the journal; 0 for the model that it all began with, and for
        steps that the journal was not told of.
    date : str
        When it took over, in ISO format.
    """

    name: str
    tuned: Tuned | None = None
    live: bool = False
    number: int = 0
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S"))


@dataclass(frozen=True)
class View:
    """The plane that is shown.

    Attributes
    ----------
    image : object
        Array of the whole layer.
    index : int
        Plane of the stack.
    name : str
        Of the image, as in its annotation.
    rgb : bool
        Whether the last axis holds channels.
    diameter : float or None
        Of its objects, as the user gave it.
    pixel_size : float or None
        In micrometres, where the layer knows it.
    """

    image: Any
    index: int
    name: str
    rgb: bool
    diameter: float | None = None
    pixel_size: float | None = None

    def of(self, tuner: Tuner, model: Model | None = None) -> Any:
        """Segment it, by the model in use or another; for a job."""
        result = tuner.segment(
            self.image,
            self.index,
            name=self.name,
            rgb=self.rgb,
            model=model if model is not None else tuner.model,
            diameter=self.diameter,
            pixel_size=self.pixel_size,
        )
        # Drawing a path after every stroke would cost more than the refit.
        return replace(result, path=None, attention=())


@dataclass(frozen=True)
class Shown:
    """The plane in view, by the model as it stands."""

    result: Any


def learn(
    tuner: Tuner,
    annotations: list[Any],
    names: dict[int, str],
    mode: str,
    settings: dict[str, Any],
    view: View | None,
    cancelled: Any,
) -> Generator[Any, None, tuple[Tuned, Any]]:
    """Learn, and segment the plane in view as it goes; runs in a job."""
    from napari_fovea.training.painted import read_painted

    painted = read_painted(
        annotations, tuner.trunk, names=names, scales=tuner.scales, cancelled=cancelled
    )
    if mode == "instant":
        run = tuner.instant(painted, cancelled=cancelled)
    else:
        run = tuner.thorough(painted, cancelled=cancelled, **settings)
    last, cost = time.perf_counter(), 0.0
    strange = False  # whether another model than that in use is shown
    try:
        while True:
            event = next(run)
            yield replace(event, model=None)
            now = time.perf_counter()
            due = now - last > max(_SHOW, 4 * cost)
            if event.model is not None and view is not None and due:
                yield Shown(view.of(tuner, event.model))
                strange = True
                last = time.perf_counter()
                cost = last - now
    except StopIteration as end:
        tuned = end.value
    if strange and view is not None and not tuned.verdict.better:
        yield Shown(view.of(tuner))
    shown = view.of(tuner, tuned.model) if view is not None else None
    return tuned, shown


def told(event: Any, spent: float) -> str:
    """Tell of an event in a line."""
    parts = {
        "looking": [f"Looking at plane {event.step}"],
        "fitting": ["Fitting to the strokes"],
        "training": [f"Epoch {event.step}"],
    }[event.phase]
    if event.loss is not None:
        parts.append(f"loss {event.loss:.3f}")
    if event.score is not None:
        parts.append(f"score {event.score:.3f}")
    if event.seconds_left is not None:
        parts.append(f"{event.seconds_left:.0f} s left")
    elif event.phase == "training":
        parts.append(f"{spent:.0f} s gone")
    return f"{', '.join(parts)} · {event.device}"
