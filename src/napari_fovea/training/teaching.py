"""What the instant learner makes of strokes, for thorough learning to go on from."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from napari_fovea.networks import Adapted, AdaptedRetina
from napari_fovea.training.adapting import student
from napari_fovea.training.evidence import (
    Gathered,
    beginning,
    choose_ridge,
    fit_evidence,
    gather,
    row_scores,
)
from napari_fovea.training.guard import (
    Stroke,
    balanced,
    fold_strokes,
    strokes_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari_fovea.models import Model
    from napari_fovea.training.painted import Painted
    from napari_fovea.training.seeing import Seeing

Belief = tuple[tuple[str, int], torch.Tensor]
"""Key of a plane, and class probabilities (K, H, W) there."""


@dataclass(frozen=True)
class Taught:
    """Where thorough learning begins.

    Attributes
    ----------
    start : Model
        What the instant learner makes of the trunk; the trunk itself, if it does no
        worse on strokes that are held out in turn.
    beliefs : iterator
        What that says of each plane.
    ridge : float
        How much evidence was held back.
    """

    start: Model
    beliefs: Iterator[Belief]
    ridge: float


def teach(seeing: Seeing, painted: Painted, held: frozenset[Stroke]) -> Taught:
    """Find what to start from, and what it believes of all planes.

    Parameters
    ----------
    seeing : Seeing
        Looks with the trunk.
    painted : Painted
        What was painted.
    held : set of Stroke
        Strokes of which nothing is to be learned.
    """
    network = seeing.prepare(painted.classes)
    gathered = _gathered(seeing, painted)
    hidden = torch.tensor([*(s in held for s in gathered.strokes), bool(held)])
    use, before = ~hidden[gathered.index], network.weights
    parts = fold_strokes([s for s in gathered.strokes if s not in held])
    gathered, scores = list(choose_ridge(gathered, before, parts, use=use))[-1]
    own = row_scores(gathered, beginning(gathered, before), of=use)
    # Where the network knows its way already, it is its own best teacher.
    trusted = bool(scores) and network.config.kept
    trusted = trusted and balanced(own) >= balanced(scores)
    taught, reading = copy.deepcopy(seeing.prepared), copy.deepcopy(network)
    if not trusted:
        reading.weights = fit_evidence(gathered, before, use=use)
        assert isinstance(taught.network, Adapted | AdaptedRetina)
        taught.network.weights = reading.weights
    plain = trusted and not bool(before.any())

    def beliefs() -> Iterator[Belief]:
        for plane in painted.planes:
            seen = seeing.look(plane).read(reading, plain=plain)
            yield plane.key, taught.class_probabilities(seen.outputs).cpu()

    start = student(seeing.trunk, painted) if trusted else taught
    return Taught(start, beliefs(), gathered.ridge)


def read_all(seeing: Seeing, painted: Painted, *, ridge: float) -> None:
    """Fit what the trunk reads to all strokes, in place."""
    own = seeing.trunk.network
    assert isinstance(own, Adapted | AdaptedRetina)
    seeing.prepare(painted.classes)
    gathered = replace(_gathered(seeing, painted), ridge=ridge)
    own.weights = fit_evidence(gathered, own.weights)


def _gathered(seeing: Seeing, painted: Painted) -> Gathered:
    network = seeing.prepare(painted.classes)
    rows = [(plane.key, seeing.see(plane)) for plane in painted.planes]
    return gather(network, rows, strokes_of(painted.planes))
