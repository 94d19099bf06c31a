"""Objects that lie across borders of blocks become one again.

Neighbouring blocks have both seen a band along their border. Two objects are one if
they share more than half of what the smaller has in the band.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from numpy.typing import NDArray

    from napari_fovea.scale.plan import Plan
    from napari_fovea.scale.store import Store
    from napari_fovea.scale.work import Work


@dataclass(frozen=True)
class Numbering:
    """Numbers of objects in the whole image.

    Attributes
    ----------
    count : int
        Number of objects.
    first : mapping
        By block, where its part of the table begins.
    table : ndarray of int32
        Number of each object of each block; 0 for those that are dropped.
    """

    count: int
    first: dict[int, int]
    table: NDArray[np.int32]

    def renumber(self, index: int, raw: NDArray[np.int32]) -> NDArray[np.int32]:
        """Bring a block's own numbers to those of the whole image."""
        first = self.first[index]
        size = int(raw.max(initial=0))
        lookup = np.zeros(size + 1, np.int32)
        lookup[1:] = self.table[first : first + size]
        return lookup[raw]


def links(a: NDArray[np.int32], b: NDArray[np.int32]) -> NDArray[np.int64]:
    """Tell which objects of two views of the same band are one.

    Parameters
    ----------
    a, b : ndarray of int32, shape (h, w)
        Objects of each view; 0 is background.

    Returns
    -------
    ndarray of int64, shape (n, 2)
        Pairs that share more than half of the smaller's pixels.
    """
    both = (a > 0) & (b > 0)
    pairs, shared = np.unique(
        np.stack([a[both], b[both]], axis=1).astype(np.int64),
        axis=0,
        return_counts=True,
    )
    of_a, of_b = np.bincount(a.ravel()), np.bincount(b.ravel())
    smaller = np.minimum(of_a[pairs[:, 0]], of_b[pairs[:, 1]])
    return pairs[2 * shared > smaller]


def number(work: Work) -> Generator[float, None, Numbering]:
    """Find out which objects of finished blocks are one, and number them all.

    Numbers are consecutive from 1, by the first block that an object lies in and
    its number there, so they do not depend on the order in which blocks were
    finished. What is left of an object that its block saw mostly outside its core,
    where no neighbour saw it, is dropped: it belongs to whom most of it lies with,
    and that one, which sees it better, says that it is none.

    Yields
    ------
    float
        How much of it is done, in [0, 1].

    Returns
    -------
    Numbering
    """
    plan, finished = work.plan, sorted(work.finished())
    known, first, total = set(finished), {}, 0
    remains = []
    for index in finished:
        inside, areas = work.read(index, "inside", "areas")
        first[index] = total
        total += len(inside) - 1
        alone = _surrounded(plan, index) <= known
        remains.append((2 * inside[1:] < areas[1:]) & alone)
    edges = [np.zeros((0, 2), np.int64)]
    for done, index in enumerate(finished):
        for other, a, b in _bands(work, index, known):
            edges.append(links(a, b) + np.array([first[index] - 1, first[other] - 1]))
        yield (done + 1) / len(finished)
    pairs = np.concatenate(edges)
    graph = coo_matrix((np.ones(len(pairs), bool), tuple(pairs.T)), (total, total))
    _, group = connected_components(graph, directed=False)
    dropped = np.concatenate(remains) if remains else np.zeros(0, bool)
    dropped[pairs.ravel()] = False
    table = np.zeros(total, np.int32)
    # Groups in the order of their first members.
    _, earliest, members = np.unique(
        group[~dropped], return_index=True, return_inverse=True
    )
    rank = np.empty(len(earliest), np.int32)
    rank[np.argsort(earliest)] = np.arange(1, len(earliest) + 1)
    table[~dropped] = rank[members]
    return Numbering(len(earliest), first, table)


def rewrite(store: Store, numbering: Numbering) -> Iterator[float]:
    """Write the objects of all finished blocks under their final numbers.

    The blocks' own numbers are kept meanwhile, so it can be done again.

    Yields
    ------
    float
        How much of it is done, in [0, 1].
    """
    for done, index in enumerate(numbering.first):
        block = store.plan[index]
        raw = store.work.raw(block)
        if raw.any():
            store.write_instances(block, numbering.renumber(index, raw))
        yield (done + 1) / len(numbering.first)


def _surrounded(plan: Plan, index: int) -> set[int]:
    """Blocks around a block."""
    rows, columns = plan.grid
    y, x = divmod(index % (rows * columns), columns)
    base = index - y * columns - x
    return {
        base + v * columns + u
        for v in range(max(0, y - 1), min(rows, y + 2))
        for u in range(max(0, x - 1), min(columns, x + 2))
    }


def _bands(
    work: Work, index: int, known: set[int]
) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
    """Both views of every band that a block shares with one beside or below it."""
    plan = work.plan
    edge = plan[index].rows[1]
    # Of the bands beside a corner, what belongs to both.
    shared = min(edge + plan.band, plan.shape[0]) - (edge - plan.band)
    for other, down, right in plan.neighbours(index):
        if other not in known:
            continue
        mine, theirs = {
            (0, 1): ("right", "left"),
            (1, 0): ("bottom", "top"),
            (1, 1): ("right", "left"),
            (1, -1): ("left", "right"),
        }[down, right]
        (a,), (b,) = work.read(index, mine), work.read(other, theirs)
        if down and right:
            a, b = a[-shared:], b[:shared]
        yield other, a, b
