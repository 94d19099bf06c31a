"""What every kind of network tells while and after it reads a plane."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from napari_fovea.inference.runner import Runner, Runners
    from napari_fovea.inference.stitching import Patchwork
    from napari_fovea.inference.tiles import Tiling
    from napari_fovea.retina import FocusPath


@dataclass(frozen=True, slots=True)
class Step:
    """Some of a plane has been read.

    Attributes
    ----------
    fraction : float
        Estimate of how much of the plane is done, in [0, 1].
    peek : callable
        Tells the outputs (C, h, w) as they stand, and the weights (h, w), which
        are above 0 where the network has looked.
    path : FocusPath or None
        New fixations.
    done : int
        Fixations so far.
    unsure : callable or None
        Tells the uncertainty (h, w) as it stands, where it is not the entropy of the
        probabilities.
    """

    fraction: float
    peek: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    path: FocusPath | None = None
    done: int = 0
    unsure: Callable[[], torch.Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """A plane has been read, as far as it was not cancelled.

    Attributes
    ----------
    outputs : Tensor of float32, shape (C, h, w)
        Probabilities of the network's outputs, at the size it was shown.
    weights : Tensor of float32, shape (h, w)
        Above 0 where the network has looked; the overlap of a scan.
    path : FocusPath or None
        All fixations.
    labels : ndarray of uint8, shape (h, w), or None
        Class of each pixel, from networks that find objects first.
    instances : ndarray of int32, shape (h, w), or None
        Objects, from networks that tell them apart by themselves.
    attention : mapping
        The attention maps that were asked for, by name.
    uncertainty : Tensor of float32, shape (h, w), or None
        Where it is not the entropy of the probabilities.
    """

    outputs: torch.Tensor
    weights: torch.Tensor
    path: FocusPath | None = None
    labels: NDArray[np.uint8] | None = None
    instances: NDArray[np.int32] | None = None
    attention: Mapping[str, Patchwork] = field(default_factory=dict)
    uncertainty: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """What a reader has chosen for planes of a kind, so that others do the same.

    Attributes
    ----------
    precision : str
        Name of `device.PRECISIONS`.
    tiling : Tiling or None
        How planes are cut, by readers that cut them.
    """

    precision: str
    tiling: Tiling | None = None


class Reader(Protocol):
    """Runs one kind of network over planes."""

    @property
    def runner(self) -> Runner | Runners:
        """What runs the network, or the networks."""

    @property
    def home(self) -> torch.device:
        """Where planes lie best."""

    @property
    def settings(self) -> dict[str, Any]:
        """What it was told, for the provenance."""

    def choose(self, image: torch.Tensor) -> Choice:
        """Choose how to read planes of the size and kind of one; see `read`."""

    def read(
        self,
        image: torch.Tensor,
        *,
        scale: tuple[float, float],
        cancelled: Callable[[], bool],
    ) -> Generator[Step, None, Seen]:
        """Read a plane.

        Parameters
        ----------
        image : Tensor of float32, shape (C, h, w)
            Normalised, best at `home`.
        scale : tuple of float
            Pixels of the user's image per pixel of this one (y, x).
        cancelled : callable
            Asked after every step.
        """


def complete(run: Generator[Any, None, Any]) -> Any:
    """Run a generator of events to its end and return its result.

    Examples
    --------
    >>> result = complete(segment(image, "retina-nuclei"))  # doctest: +SKIP
    """
    try:
        while True:
            next(run)
    except StopIteration as end:
        return end.value
