"""From a user's array to planes that a network takes: axes, channels, values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from napari_fovea.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

AXES = "TZYXC"
"""Letters of image axes: time, depth, rows, columns, channels."""

_SAMPLE = 1_000_000


@dataclass(frozen=True)
class Planes:
    """An image as a sequence of planes, checked and ready to be normalised.

    Attributes
    ----------
    data : ndarray, shape (n, H, W, C)
        A view of the user's array wherever one exists.
    lead : tuple of int
        Shape of the stack axes, empty for a single image; its product is n.
    axes : str
        The axes as they were read, such as ``"YX"`` or ``"ZYXC"``.
    """

    data: NDArray[np.generic]
    lead: tuple[int, ...]
    axes: str

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.data.shape[1:3]
        return int(height), int(width)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.data.shape[3])

    def for_network(self, channels: int, *, blank: bool = False) -> Planes:
        """Give the planes the channels that a network takes.

        One channel is left to be repeated; the last of red, green, blue and
        alpha is dropped.

        Parameters
        ----------
        channels : int
            Channels the network takes.
        blank : bool
            Whether what is left of the image may be constant, as an empty field of
            view among others is.

        Raises
        ------
        ImageError
            If the channels do not fit, or what is left of the image is constant.
        """
        have, seen = self.channels, self
        if have == 4 and channels == 3:
            seen = replace(self, data=self.data[..., :3])
        elif have not in (1, channels):
            takes = "1 channel" if channels == 1 else f"1 or {channels} channels"
            raise ImageError(
                f"The image has {have} channels; this model takes {takes}: choose the "
                "channels to segment, or a model trained for these."
            )
        if not blank and seen.data.min() == seen.data.max():
            raise ImageError(
                f"The image is constant (every pixel is {seen.data.flat[0]}); there is "
                "nothing to segment in it: check the layer and its contrast."
            )
        return seen

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[NDArray[np.generic]]:
        return iter(self.data)


def guess_axes(shape: tuple[int, ...], *, rgb: bool | None = None) -> str:
    """Name the axes of an image from its shape.

    Parameters
    ----------
    shape : tuple of int
        Shape of the array.
    rgb : bool, optional
        Whether the last axis holds channels. By default it does if it has 3 or
        4 entries and the two before it more than 4, or if it has a single one.

    Returns
    -------
    str
        ``"YX"``, ``"YXC"``, ``"ZYX"``, ``"ZYXC"``, ``"TZYX"`` or ``"TZYXC"``.

    Raises
    ------
    ImageError
        If there are fewer than 2 axes or more than the letters tell.
    """
    if rgb is None:
        deep = len(shape) > 2
        rgb = deep and (
            shape[-1] == 1 or (shape[-1] in (3, 4) and min(shape[-3:-1]) > 4)
        )
    spatial = len(shape) - bool(rgb)
    if not 2 <= spatial <= 4:
        kind = "colour image" if rgb else "image"
        raise ImageError(
            f"The {kind} has shape {shape}; expected (H, W), (H, W, C), or a stack of "
            "these with one or two leading axes: choose the part to segment."
        )
    return AXES[4 - spatial : 4] + ("C" if rgb else "")


def axes_beside(
    shape: tuple[int, ...], plane: tuple[int, ...], *, most: int = 4
) -> str | None:
    """Name the axes of an image of which the height and width are known.

    Parameters
    ----------
    shape : tuple of int
        Shape of the image.
    plane : tuple of int
        Height and width, such as those of its labels.
    most : int
        Most channels.

    Returns
    -------
    str or None
        ``"YXC"`` or ``"CYX"``, or None where the shapes tell neither.
    """
    if len(shape) == 3 and shape[:2] == plane and shape[2] <= most:
        return "YXC"
    if len(shape) == 3 and shape[1:] == plane and shape[0] <= most:
        return "CYX"
    return None


def name_axes(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    axes: str | None = None,
    rgb: bool | None = None,
) -> str:
    """Check that an array can be an image, without reading it, and name its axes.

    Parameters
    ----------
    shape, dtype
        Of the array.
    axes, rgb
        See `read_planes`.

    Returns
    -------
    str
        Letters of ``"TZYXC"`` in the order of the array's axes.

    Raises
    ------
    ImageError
        If the array is empty, not numeric, or has axes that make no sense.
    """
    if dtype.kind not in "buif":
        raise ImageError(
            f"The image has type {dtype}; expected numbers: convert it to "
            "an integer or float type."
        )
    if math.prod(shape) == 0:
        raise ImageError(
            f"The image is empty (shape {shape}); give at least one pixel."
        )
    axes = guess_axes(shape, rgb=rgb) if axes is None else axes.upper()
    known = set(axes) <= set(AXES) and {"Y", "X"} <= set(axes)
    if not known or len(set(axes)) != len(axes) or len(axes) != len(shape):
        raise ImageError(
            f"Axes {axes!r} do not describe an image of shape {shape}; expected "
            f"one letter of {AXES} for each axis, among them Y and X."
        )
    return axes


def read_planes(
    image: ArrayLike, *, axes: str | None = None, rgb: bool | None = None
) -> Planes:
    """Check an image and lay it out as planes with channels last.

    Parameters
    ----------
    image : array_like
        Any numeric type. (H, W), (H, W, C), or stacks of these.
    axes : str, optional
        What each axis is, a permutation of letters of ``"TZYXC"`` with Y and X;
        guessed from the shape where it is not given.
    rgb : bool, optional
        Whether the last axis holds channels, where ``axes`` is not given.

    Returns
    -------
    Planes

    Raises
    ------
    ImageError
        If the array is empty, not numeric, holds NaN or infinity, or has axes
        that make no sense.
    """
    data = np.asarray(image)
    axes = name_axes(data.shape, data.dtype, axes=axes, rgb=rgb)
    data = data.transpose([axes.index(a) for a in AXES if a in axes])
    if "C" not in axes:
        data = data[..., None]
    lead = data.shape[:-3]
    _check_values(data)
    return Planes(data.reshape(math.prod(lead), *data.shape[-3:]), lead, axes)


def _check_values(data: NDArray[np.generic]) -> None:
    if data.dtype.kind != "f":
        return
    # Plane by plane: a mask of the whole array would double its memory.
    bad = sum(int((~np.isfinite(part)).sum()) for part in data)
    if bad:
        raise ImageError(
            f"The image holds {bad} pixel values that are NaN or infinite; "
            "expected finite numbers: replace them, for example with the median."
        )


@dataclass(frozen=True)
class Normalisation:
    """Brings intensities to about [0, 1], by percentiles of the whole image.

    All channels share one scale, so colours stay what they are; planes of a
    stack share it too, so empty planes stay empty.

    Attributes
    ----------
    low, high : float
        Percentiles that become 0 and 1, in percent.
    """

    low: float = 1.0
    high: float = 99.8

    def limits(self, planes: Planes) -> tuple[float, float]:
        """Intensities that become 0 and 1."""
        data = planes.data
        # A regular sample settles percentiles; whole slides need not be sorted.
        _, height, width, _ = data.shape
        stride = max(1, math.isqrt(height * width // _SAMPLE))
        skip = max(1, len(data) * height * width // (stride**2 * _SAMPLE))
        sample = data[::skip, ::stride, ::stride].astype(np.float64)
        low, high = np.percentile(sample, [self.low, self.high])
        if high <= low:  # nearly everything is background
            low, high = float(data.min()), float(data.max())
        return float(low), float(high if high > low else low + 1)


def to_tensor(
    plane: NDArray[np.generic],
    *,
    limits: tuple[float, float],
    channels: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Normalise one plane and give it the channels a network takes.

    Parameters
    ----------
    plane : ndarray, shape (H, W, C)
        Any numeric type.
    limits : tuple of float
        Intensities that become 0 and 1; see `Normalisation.limits`.
    channels : int
        Channels to return; a single channel is repeated. See `Planes.for_network`.
    device : torch.device or str
        Where to.

    Returns
    -------
    Tensor of float32, shape (channels, H, W)
        Clipped to [-0.5, 2]. Repeated channels share memory.
    """
    low, high = limits
    values = plane.transpose(2, 0, 1)
    scaled: NDArray[np.floating]
    if values.dtype.itemsize > 2:
        # Subtract before rounding, or large offsets would swallow the signal.
        scaled = (values.astype(np.float64) - low) / (high - low)
    else:
        scaled = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    clipped = np.ascontiguousarray(scaled.clip(-0.5, 2.0), dtype=np.float32)
    return torch.from_numpy(clipped).to(device).expand(channels, -1, -1)


def resize(image: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Resize (C, H, W) to (C, *shape), bilinear and antialiased."""
    if tuple(image.shape[-2:]) == tuple(shape):
        return image
    return functional.interpolate(
        image[None], size=shape, mode="bilinear", antialias=True, align_corners=False
    )[0]
