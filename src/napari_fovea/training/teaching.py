"""What the instant learner makes of strokes, for thorough learning to go on from."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from napari_fovea.networks import Adapted, AdaptedRetina
from napari_fovea.training.adapting import student
from napari_fovea.training.evidence import (
    Gathered,
    class_logits,
    fit_evidence,
    gather,
    held_out_scores,
    row_scores,
)
from napari_fovea.training.guard import (
    Scores,
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


def teach(
    seeing: Seeing, painted: Painted, held: frozenset[Stroke]
) -> tuple[Model, Iterator[Belief]]:
    """Find what to start from, and what it believes of all planes.

    Parameters
    ----------
    seeing : Seeing
        Looks with the trunk.
    painted : Painted
        What was painted.
    held : set of Stroke
        Strokes of which nothing is to be learned.

    Returns
    -------
    start : Model
        What the instant learner makes of the trunk with the other strokes; the trunk
        itself, if it does no worse where they are held out in turn.
    beliefs : iterator
        What that says of each plane.
    """
    network = seeing.prepare(painted.classes)
    gathered = _gathered(seeing, painted)
    hidden = torch.tensor([*(s in held for s in gathered.strokes), bool(held)])
    use, before = ~hidden[gathered.index], network.weights
    taught = copy.deepcopy(seeing.prepared)
    assert isinstance(taught.network, Adapted | AdaptedRetina)
    taught.network.weights = fit_evidence(gathered, before, use=use)
    # Where the network knows its way already, it is its own best teacher.
    scores: Scores = {}
    parts = fold_strokes([s for s in gathered.strokes if s not in held])
    for some in held_out_scores(gathered, before, parts, use=use):
        scores |= some
    own = row_scores(gathered, beginning(gathered, before), of=use)
    trusted = bool(scores) and network.config.kept
    trusted = trusted and balanced(own) >= balanced(scores)
    reading = copy.deepcopy(network)
    if not trusted:
        reading.weights = taught.network.weights
    plain = trusted and not bool(before.any())

    def beliefs() -> Iterator[Belief]:
        for plane in painted.planes:
            seen = seeing.look(plane).read(reading, plain=plain)
            yield plane.key, taught.class_probabilities(seen.outputs).cpu()

    return (student(seeing.trunk, painted) if trusted else taught), beliefs()


def read_all(seeing: Seeing, painted: Painted) -> None:
    """Fit what the trunk reads to all strokes, in place."""
    own = seeing.trunk.network
    assert isinstance(own, Adapted | AdaptedRetina)
    seeing.prepare(painted.classes)
    own.weights = fit_evidence(_gathered(seeing, painted), own.weights)


def beginning(gathered: Gathered, start: torch.Tensor) -> torch.Tensor:
    """Class probabilities of rows by the trunk, which may read evidence itself."""
    if not bool(start.any()):
        return gathered.base
    return class_logits(gathered, start).softmax(1).float()


def _gathered(seeing: Seeing, painted: Painted) -> Gathered:
    network = seeing.prepare(painted.classes)
    rows = [(plane.key, seeing.see(plane)) for plane in painted.planes]
    return gather(network, rows, strokes_of(painted.planes))
