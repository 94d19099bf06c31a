"""Whether a model that learned from strokes is better, by strokes it did not see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from napari_fovea.inference.sizes import enlarge
from napari_fovea.training.painted import block_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from napari_fovea.training.painted import PaintedPlane

FOLDS = 4
"""Parts into which the strokes of each class are divided."""

_NOTICED = 1e-3  # a smaller gain is none
_ABOVE_CHANCE = 0.25  # of the way from guessing to being always right


class Stroke(NamedTuple):
    """Names a stroke: the plane it is on, its number there, and its class."""

    plane: tuple[str, int]
    number: int
    label: int


Scores = dict[Stroke, float]
"""Mean probability that a model gives to what was painted, by stroke."""


def strokes_of(planes: Iterable[PaintedPlane]) -> list[Stroke]:
    """All strokes, plane by plane."""
    return [
        Stroke(plane.key, number, label)
        for plane in planes
        for number, label in plane.stroke_classes().items()
    ]


def fold_strokes(
    strokes: Sequence[Stroke], *, complete: bool = False, folds: int = FOLDS
) -> dict[Stroke, int]:
    """Divide strokes into parts.

    Parameters
    ----------
    strokes : sequence of Stroke
        All of them.
    complete : bool
        Whether they are blocks of complete labels; then all that lies in one block
        belongs to one part. Else the strokes of each class are dealt out in turn.
    folds : int
        Most parts.

    Returns
    -------
    dict
        Part of each stroke from 0. A class of a single stroke is never held out: its
        part is −1.
    """
    by_class: dict[int, list[Stroke]] = {}
    for stroke in strokes:
        by_class.setdefault(stroke.label, []).append(stroke)
    parts = {}
    for some in by_class.values():
        dealt = list(range(len(some)))
        if complete:
            blocks = [sum(block_of(stroke.number)) for stroke in some]
            # A class that lies in one part only is dealt out: some of it must remain.
            dealt = blocks if len({b % folds for b in blocks}) > 1 else dealt
        for i, stroke in zip(dealt, some, strict=True):
            parts[stroke] = i % folds if len(some) > 1 else -1
    return parts


def balanced(scores: Mapping[Stroke, float]) -> float:
    """Mean over strokes of each class, then over the classes; in [0, 1]."""
    by_class: dict[int, list[float]] = {}
    for stroke, score in scores.items():
        by_class.setdefault(stroke.label, []).append(score)
    if not by_class:
        return 0.0
    return float(np.mean([np.mean(some) for some in by_class.values()]))


@dataclass(frozen=True, slots=True)
class Verdict:
    """How two models compare on strokes that were held out.

    Attributes
    ----------
    before, after : float
        Score of each: the mean probability given to what was painted, strokes of a
        class and classes counting alike; in [0, 1].
    strokes : int
        Strokes that were held out; with none, nothing can be said.
    gained, lost : float
        What the strokes that got better contribute to the difference, and what
        those contribute that got worse; both at least 0.
    classes : int
        Classes that are told apart.
    """

    before: float
    after: float
    strokes: int
    gained: float
    lost: float
    classes: int = 2

    @property
    def better(self) -> bool:
        """Whether the new model may take over.

        It must score higher, clearly more than by guessing, and what it gains must be
        at least twice what it loses: where strokes contradict each other, gains and
        losses are alike, and nothing can be foretold of those that are held out.
        """
        higher = self.after > self.before + _NOTICED
        return higher and not self.guessing and self.gained >= 2 * self.lost

    @property
    def guessing(self) -> bool:
        """Whether the new model is hardly better than chance."""
        chance = 1 / self.classes
        return self.after < chance + _ABOVE_CHANCE * (1 - chance)

    def __str__(self) -> str:
        if not self.strokes:
            return (
                "No stroke could be held out, so nothing is known of how good it is: "
                "paint at least two strokes of a class."
            )
        told = f"{self.before:.3f} → {self.after:.3f}, {self.strokes} held-out strokes"
        if self.better:
            return told
        if self.after <= self.before + _NOTICED:
            return f"{told}, no better than before"
        if self.guessing:
            return f"{told}, hardly better than guessing: paint more"
        return f"{told}, but much got worse: some strokes may contradict others"


def judge(
    before: Mapping[Stroke, float], after: Mapping[Stroke, float], *, classes: int = 2
) -> Verdict:
    """Compare two models on the strokes that both were scored on.

    Parameters
    ----------
    before, after : mapping of Stroke to float
        Their scores.
    classes : int
        Classes that are told apart.
    """
    both = [s for s in after if s in before]
    labels = {s.label for s in both}
    counts = {c: sum(s.label == c for s in both) for c in labels}
    changes = np.array(
        [(after[s] - before[s]) / counts[s.label] / len(labels) for s in both]
    )
    return Verdict(
        balanced({s: before[s] for s in both}),
        balanced({s: after[s] for s in both}),
        len(both),
        float(changes[changes > 0].sum()),
        float(abs(changes[changes < 0].sum())),
        classes,
    )


def stroke_scores(plane: PaintedPlane, probabilities: NDArray[np.floating]) -> Scores:
    """Mean probability that each stroke of a plane is given.

    Parameters
    ----------
    plane : PaintedPlane
        Knows the strokes.
    probabilities : ndarray, shape (K, H, W)
        Class probabilities.
    """
    rows, columns = np.nonzero(plane.strokes)
    numbers = plane.strokes[rows, columns]
    given = probabilities[plane.classes[rows, columns], rows, columns]
    total = np.bincount(numbers, weights=given)
    count = np.bincount(numbers)
    return {
        Stroke(plane.key, n, label): float(total[n] / count[n])
        for n, label in plane.stroke_classes().items()
    }


def carried(
    old: Iterable[PaintedPlane], scores: Mapping[Stroke, float], new: PaintedPlane
) -> Scores:
    """Scores that were found for strokes, by the strokes they are part of now.

    Strokes are numbered anew whenever something is painted; what they have in common
    are pixels of one class.

    Parameters
    ----------
    old : iterable of PaintedPlane
        What was painted when the scores were found.
    scores : mapping of Stroke to float
        The scores.
    new : PaintedPlane
        What is painted now.

    Returns
    -------
    dict
        For each stroke of the new plane that shares pixels with scored ones their
        mean, by the number of pixels.
    """
    found: dict[Stroke, list[tuple[float, int]]] = {}
    for plane in old:
        if plane.key != new.key:
            continue
        # Another size of its objects may have been told since.
        size = (plane.strokes.shape[0], plane.strokes.shape[1])
        strokes, classes = (enlarge(a, size) for a in (new.strokes, new.classes))
        both = (plane.strokes > 0) & (plane.classes == classes)
        pairs, counts = np.unique(
            np.stack([plane.strokes[both], strokes[both]]),
            axis=1,
            return_counts=True,
        )
        labels = new.stroke_classes()
        for before, now, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
            score = scores.get(Stroke(plane.key, before, labels[now]))
            if score is not None:
                stroke = Stroke(new.key, now, labels[now])
                found.setdefault(stroke, []).append((score, count))
    return {
        stroke: sum(x * n for x, n in some) / sum(n for _, n in some)
        for stroke, some in found.items()
    }
