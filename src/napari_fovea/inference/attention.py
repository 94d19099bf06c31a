"""The attention of any model: what there is to see, and how it is kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_fovea.errors import AttentionError
from napari_fovea.inference.result import AttentionMap
from napari_fovea.networks import RetinaConfig
from napari_fovea.networks.gates import Coefficients
from napari_fovea.networks.mask_rcnn.fpn import TopDownBlock
from napari_fovea.retina import finest_levels

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from napari_fovea.models import Model
    from napari_fovea.retina import FocusPath

OVERLAP, ENTROPY = "overlap", "entropy"
LEVEL, UNSEEN = "finest level seen", "never seen at high resolution"

_CHANNEL = re.compile(r"(?P<name>.*) \[(?P<channel>\d+)\]")
_OF_FOCUS = {
    OVERLAP: "how many looks covered each pixel",
    ENTROPY: "entropy of the map in nats",
    LEVEL: "1: only outer cells, up to r: the fovea",
    UNSEEN: "1 where no smallest cell ever was",
}


@dataclass(frozen=True, slots=True)
class Attends:
    """An attention map that a model makes.

    Attributes
    ----------
    name : str
        Its name; ``"name [3]"`` is its fourth channel alone.
    channels : int
        How many channels it has; by default their mean is shown.
    note : str
        What it tells, in a few words.
    value : str
        A number that weighs it, such as the γ of its level.
    """

    name: str
    channels: int = 1
    note: str = ""
    value: str = ""


def attends(model: Model) -> tuple[Attends, ...]:
    """List the attention maps that a model makes.

    Parameters
    ----------
    model : Model
        Any model.

    Returns
    -------
    tuple of Attends
        Empty for networks without attention, and for ensembles of systems: each of
        their members looks in its own way.
    """
    if model.members:
        return ()
    config = model.config
    if isinstance(config, RetinaConfig):
        return tuple(Attends(name, note=note) for name, note in _OF_FOCUS.items())
    gammas = {
        part.label: part.gamma.item()
        for part in model.network.modules()
        if isinstance(part, TopDownBlock) and part.gamma is not None
    }
    return tuple(
        Attends(
            part.label,
            part.channels,
            value=f"γ = {gammas[part.label]:.3g}" if part.label in gammas else "",
        )
        for part in model.network.modules()
        if isinstance(part, Coefficients)
    )


@dataclass(frozen=True, slots=True)
class Wanted:
    """A map that is asked for: the mean of its channels, or one of them.

    Attributes
    ----------
    name : str
        As it was asked for.
    of : str
        Name of the coefficients.
    channel : int or None
        The one channel, or None for the mean.
    """

    name: str
    of: str
    channel: int | None = None


def wanted(model: Model, names: Iterable[str]) -> tuple[Wanted, ...]:
    """Check names of attention maps against what a model makes.

    Raises
    ------
    AttentionError
        If the model makes no such map, or has no such channel.
    """
    there = {a.name: a for a in attends(model)}
    asked = []
    for name in dict.fromkeys([names] if isinstance(names, str) else names):
        of, channel = name, None
        found = _CHANNEL.fullmatch(name)
        if name not in there and found is not None and found["name"] not in _OF_FOCUS:
            of, channel = found["name"], int(found["channel"])
        if not there:
            raise AttentionError(
                f"Model {model.name!r} has no attention to show, only classes and "
                "their uncertainty; expected a network with attention: choose "
                "another model."
            )
        if of not in there:
            raise AttentionError(
                f"Model {model.name!r} makes no attention map {of!r}; expected one "
                f"of {', '.join(there)}."
            )
        if channel is not None and channel >= there[of].channels:
            raise AttentionError(
                f"Attention map {of!r} has no channel {channel}; expected 0 to "
                f"{there[of].channels - 1}."
            )
        asked.append(Wanted(name, of, channel))
    return tuple(asked)


def of_focus(
    path: FocusPath, asked: Sequence[Wanted], *, shape: tuple[int, int]
) -> tuple[AttentionMap, ...]:
    """Make the maps of a scan that its path tells.

    Parameters
    ----------
    path : FocusPath
        Of an image or a stack.
    asked : sequence of Wanted
        Which maps; those that the path does not tell are left out.
    shape : tuple of int
        Height and width of the user's image.

    Returns
    -------
    tuple of AttentionMap
    """
    names = [w.name for w in asked if w.name in (LEVEL, UNSEEN)]
    if not names:
        return ()
    count = int(np.prod(path.lead, dtype=np.int64))
    planes = np.stack([finest_levels(path, plane=i) for i in range(count)])
    levels = planes.reshape(*path.lead, *planes.shape[1:])
    made = {
        LEVEL: levels,
        UNSEEN: (levels < path.grid.r).astype(np.uint8),
    }
    return tuple(AttentionMap.over(n, made[n], shape=shape) for n in names)


def means_of_instances(
    attention: AttentionMap, instances: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Mean of an attention map over every object.

    Parameters
    ----------
    attention : AttentionMap
        Leading axes as those of the instances.
    instances : ndarray of int, shape (..., H, W)
        Objects; 0 is background.

    Returns
    -------
    ndarray of float64, shape (n + 1,)
        Mean for every number up to the largest, background included; NaN where a
        number is not used or lies outside the map. Every pixel counts the value of
        the map's pixel that its centre lies in.
    """
    array = np.asarray(attention.array)
    if array.shape[:-2] != instances.shape[:-2]:
        raise AttentionError(
            f"The attention map has stack axes {array.shape[:-2]} and the objects "
            f"{instances.shape[:-2]}; expected the same: use maps and objects of one "
            "run."
        )
    index = []
    for axis in (-2, -1):
        place = np.arange(instances.shape[axis]) - attention.offset[axis]
        nearest = np.floor(place / attention.scale[axis] + 0.5).astype(np.int64)
        index.append(np.where(nearest < array.shape[axis], nearest, -1).clip(-1))
    rows, columns = index
    values = array[..., rows, :][..., columns].astype(np.float64)
    inside = ((rows >= 0)[:, None] & (columns >= 0)) & (instances >= 0)
    count = int(instances.max(initial=0)) + 1
    numbers = instances[inside]
    areas = np.bincount(numbers, minlength=count)
    sums = np.bincount(numbers, weights=values[inside], minlength=count)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / np.where(areas, areas, np.nan))
