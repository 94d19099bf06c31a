"""Which looks of a retina decided a place: the map taken apart, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_fovea.errors import AttentionError
from napari_fovea.inference.region import locate

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from napari_fovea.inference.region import Region
    from napari_fovea.retina import FocusPath


@dataclass(frozen=True)
class Deciding:
    """Whose votes made the map over a region.

    Attributes
    ----------
    label : int
        The class that won: the one of the largest mean probability.
    name : str
        Its name, or its number where the path knows no names.
    probability : float
        Its mean probability over the region.
    looks : ndarray, shape (m,)
        The weightiest looks, a look being one cell of one fixation; a structured
        array with fields ``fixation`` (index into the path), ``cell`` (index into
        ``path.grid.cells``), ``side`` (of the cell, in pixels of the scanned
        image), ``share``, ``pmf`` (K), ``pull`` and ``box`` (top, left, bottom,
        right in pixels of the user's image, as `FocusPath.cells` tells them). Of
        equal shares the earlier fixation comes first.
    shares : ndarray of float64, shape (n,)
        Share of each fixation of the path; 0 for those that did not see it. They
        sum to 1.
    pulls : ndarray of float64, shape (n,)
        Pull of each fixation; they sum to ``probability`` − 1/K.
    seen : float
        How much of the region was ever seen, in (0, 1]. What was not seen says
        nothing and is left out of everything here.
    """

    label: int
    name: str
    probability: float
    looks: NDArray[np.void]
    shares: NDArray[np.float64]
    pulls: NDArray[np.float64]
    seen: float


def deciding(
    path: FocusPath, region: ArrayLike, *, plane: int = 0, most: int = 20
) -> Deciding:
    r"""Tell which looks decided the class of a place or an object.

    The map at a pixel is a weighted mean of the pmfs of all cells that covered it,
    so nothing is estimated here. Cell *i*, of weight :math:`w_i`, has the share

    .. math::

        s_i = \frac{1}{|R|} \sum_{x \in R, \, x \in i}
        \frac{w_i}{\sum_{j \ni x} w_j}

    of the region R, and the shares of all cells sum to 1. Its pull towards the
    class *k* that won is :math:`s_i \, (p_{ik} - 1/K)`: what it adds to the
    class's probability beyond 1/K, which stands for knowing nothing. A cell that
    is undecided pulls nowhere, one that would have chosen otherwise pulls back,
    and all pulls together are the probability minus 1/K.

    The fusion ``precision`` interpolates its map between the finest cells when it
    is read out; that is left out of account, so near the edges of cells the map
    that is shown may differ a little from the probability told here.

    Parameters
    ----------
    path : FocusPath
        With pmfs and the shape of its image, as `segment` returns it.
    region : array_like
        A mask (H, W) of bool in pixels of the user's image, or a point (y, x).
    plane : int
        Plane of a stack.
    most : int
        How many looks to list.

    Returns
    -------
    Deciding

    Raises
    ------
    AttentionError
        If the path does not tell what was seen, the region is no region of its
        image, or no fixation ever saw it.
    """
    if path.pmfs is None or path.shape is None or path.image_shape is None:
        raise AttentionError(
            "This focus path tells where the retina looked, but not what it saw; "
            "expected the pmfs of its cells: segment the image again."
        )
    if most < 1:
        raise AttentionError(
            f"The number of looks to list is {most}; expected 1 or more: leave it out."
        )
    place = locate(region, shape=path.image_shape, resized=path.shape)
    top, left, bottom, right = place.box
    d = path.grid.d
    near = (path.corners < (bottom, right)) & (path.corners + d > (top, left))
    steps = np.flatnonzero(near.all(1) & (path.planes == plane))
    shares, seen = _shares(path, steps, place)
    pmfs = path.pmfs[steps].astype(np.float64)
    # Halves are rounded, so these do not quite sum to 1 by themselves.
    pmfs /= np.maximum(pmfs.sum(-1, keepdims=True), 1e-30)
    mean = np.einsum("nc,nck->k", shares, pmfs)
    label = int(mean.argmax())
    pulls = shares * (pmfs[..., label] - 1 / pmfs.shape[-1])
    return Deciding(
        label=label,
        name=path.classes[label] if path.classes else str(label),
        probability=float(mean[label]),
        looks=_table(path, steps, shares, pmfs, pulls, most),
        shares=_by_fixation(path, steps, shares),
        pulls=_by_fixation(path, steps, pulls),
        seen=seen,
    )


def _shares(
    path: FocusPath, steps: NDArray[np.int64], place: Region
) -> tuple[NDArray[np.float64], float]:
    """Shares (n, N) of the cells of some fixations, and how much they saw."""
    weights = path.fusion.weights(path.grid).double().numpy()
    height, width = place.mask.shape
    corners = path.corners[steps] - (place.top, place.left)
    boxes = np.concatenate([corners, corners], 1)[:, None] + path.grid.cells
    y0, x0, y1, x1 = np.moveaxis(boxes.clip(0, (height, width) * 2), -1, 0)
    # A cell weighs the same over a rectangle, so its four corners say all: once to
    # sum the weights over each pixel, once to sum over each cell what that leaves.
    edges = np.zeros((height + 1) * (width + 1))
    signed = np.broadcast_to(weights, y0.shape).ravel()
    for y, x, sign in ((y0, x0, 1), (y1, x1, 1), (y0, x1, -1), (y1, x0, -1)):
        where = (y * (width + 1) + x).ravel()
        edges += sign * np.bincount(where, signed, minlength=len(edges))
    total = edges.reshape(height + 1, width + 1).cumsum(0).cumsum(1)[:-1, :-1]
    # Not 0, since sums of weights that are no binary fractions are rounded.
    known = place.mask & (total > weights.min() / 2)
    if not known.any():
        raise AttentionError(
            "The retina never looked at this place, so nothing decided it; expected a "
            "place within the overlap map: choose another, or scan with more fixations."
        )
    each = np.zeros((2, height + 1, width + 1))
    each[0, 1:, 1:] = known
    each[1, 1:, 1:][known] = 1 / (known.sum() * total[known])
    sums = each.cumsum(1).cumsum(2)
    count, inside = (
        s[y1, x1] - s[y0, x1] - s[y1, x0] + s[y0, x0] for s in sums
    )  # (n, N)
    shares = np.where(count > 0, weights * inside, 0)
    return shares, float(known.sum() / place.mask.sum())


def _table(
    path: FocusPath,
    steps: NDArray[np.int64],
    shares: NDArray[np.float64],
    pmfs: NDArray[np.float64],
    pulls: NDArray[np.float64],
    most: int,
) -> NDArray[np.void]:
    """List the weightiest looks."""
    # Equal shares differ by rounding; they are to be told in the order of the path.
    weighty = np.argsort(-shares.round(12), axis=None, kind="stable")[:most]
    weighty = weighty[shares.ravel()[weighty] > 0]
    row, cell = np.unravel_index(weighty, shares.shape)
    boxes = path.grid.cells[cell] + np.tile(path.corners[steps[row]], 2)
    fields: dict[str, tuple[NDArray[Any], Any]] = {
        "fixation": (steps[row], np.int64),
        "cell": (cell, np.int64),
        "side": (np.diff(path.grid.cells[cell][:, [0, 2]])[:, 0], np.int64),
        "share": (shares[row, cell], np.float64),
        "pmf": (pmfs[row, cell], (np.float64, pmfs.shape[-1:])),
        "pull": (pulls[row, cell], np.float64),
        "box": (boxes * np.array(path.scale * 2) - 0.5, (np.float64, (4,))),
    }
    table = np.zeros(len(weighty), dtype=[(k, t) for k, (_, t) in fields.items()])
    for name, (values, _) in fields.items():
        table[name] = values
    return table


def _by_fixation(
    path: FocusPath, steps: NDArray[np.int64], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    sums = np.zeros(len(path))
    sums[steps] = values.sum(1)
    return sums
