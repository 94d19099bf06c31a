"""What a segmentation is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from napari_fovea.retina import FocusPath


@dataclass(frozen=True)
class AttentionMap:
    """Where a network looked, at the resolution at which it did.

    Attributes
    ----------
    name : str
        What it shows, such as ``"overlap"``.
    array : ndarray, shape (..., h, w)
        Values at their own resolution; leading axes are those of the stack.
    scale : tuple of float
        Image pixels per pixel of the array (y, x).
    offset : tuple of float
        Image position (y, x) of the centre of the array's first pixel.
    """

    name: str
    array: NDArray[np.generic]
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def over(
        cls, name: str, array: NDArray[np.generic], *, shape: tuple[int, int]
    ) -> AttentionMap:
        """Lay an array edge to edge over an image of ``shape``."""
        sy, sx = (n / m for n, m in zip(shape, array.shape[-2:], strict=True))
        # The edges coincide, so centres of first pixels differ by half a pixel.
        return cls(name, array, (sy, sx), ((sy - 1) / 2, (sx - 1) / 2))


@dataclass(frozen=True)
class Segmentation:
    """Result of segmenting an image; leading axes are those of a stack.

    Attributes
    ----------
    labels : ndarray of uint8, shape (..., H, W)
        Most probable class of each pixel; 0 is background.
    probabilities : ndarray of float32, shape (K, ..., H, W)
        Class probabilities.
    uncertainty : ndarray of float32, shape (..., H, W)
        Entropy of the probabilities in nats, from 0 to log K. Of an ensemble of
        systems, what they disagree about, in the same range; see `Model.ensemble`.
    instances : ndarray of int32, shape (..., H, W)
        Objects, numbered from 1 through the whole stack; 0 is background.
    path : FocusPath or None
        Where a retina network looked.
    attention : tuple of AttentionMap
        What else tells where the network looked.
    provenance : mapping
        Model, settings, image and machine that made it, ready for JSON.
    """

    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    uncertainty: NDArray[np.float32]
    instances: NDArray[np.int32]
    path: FocusPath | None = None
    attention: tuple[AttentionMap, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Started:
    """Image, model and settings fit together; nothing has been computed yet.

    Attributes
    ----------
    shape : tuple of int
        Shape of the result, stack axes first.
    scanned : tuple of int
        Height and width at which the network looks at each plane, unless objects are
        measured first; then `Measured` tells it.
    classes : int
        Number of classes K.
    focused : bool
        Whether the network moves a focus: there will be fixations and an overlap.
    fraction : float
        0.
    """

    shape: tuple[int, ...]
    scanned: tuple[int, int]
    classes: int
    focused: bool = True
    fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Objects have been measured; see `estimate_diameter`.

    Attributes
    ----------
    diameter : float or None
        Of typical ones, in pixels of the image; None if none were found, and the
        image keeps its own scale.
    scanned : tuple of int
        Height and width at which the network looks at each plane.
    fraction : float
        0.
    """

    diameter: float | None
    scanned: tuple[int, int]
    fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class Fixated:
    """A batch of fixations has been made.

    Attributes
    ----------
    plane : int
        Plane of the stack, counted from 0.
    path : FocusPath
        These fixations alone, in the order in which they were made.
    done : int
        Fixations made so far in this plane.
    fraction : float
        Estimate of how much of the whole image is done, in [0, 1].
    """

    plane: int
    path: FocusPath
    done: int
    fraction: float


@dataclass(frozen=True, slots=True)
class Preview:
    """The map as it stands; arrays are copies at the image's own size.

    Attributes
    ----------
    plane : int
        Plane of the stack, counted from 0.
    labels : ndarray of uint8, shape (H, W)
    uncertainty : ndarray of float32, shape (H, W)
    overlap : AttentionMap or None
        From networks that move a focus.
    """

    plane: int
    labels: NDArray[np.uint8]
    uncertainty: NDArray[np.float32]
    overlap: AttentionMap | None


@dataclass(frozen=True, slots=True)
class Tiled:
    """Some tiles have been seen by a network that moves no focus.

    Attributes
    ----------
    plane : int
        Plane of the stack, counted from 0.
    fraction : float
        Estimate of how much of the whole image is done, in [0, 1].
    """

    plane: int
    fraction: float


@dataclass(frozen=True, slots=True)
class Separating:
    """The map of a plane is done; its objects are being told apart.

    Attributes
    ----------
    plane : int
        Plane of the stack, counted from 0.
    fraction : float
        Estimate of how much of the whole image is done, in [0, 1].
    """

    plane: int
    fraction: float


Event = Started | Measured | Fixated | Tiled | Preview | Separating
"""What a running segmentation reports."""
