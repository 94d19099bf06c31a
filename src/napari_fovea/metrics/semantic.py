"""How well classes of pixels agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from napari_fovea.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often two masks agree, and how they differ.

    Confusions add up: the sum over images pools their pixels.

    Where a measure divides by 0 it is 1 if the two sides it compares are both empty,
    and 0 if only one is: two empty masks agree.

    Parameters
    ----------
    tp, fp, fn, tn : int
        Pixels that are true positives, false positives, false negatives and true
        negatives.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    @classmethod
    def of(
        cls,
        prediction: ArrayLike,
        truth: ArrayLike,
        *,
        ignore: ArrayLike | None = None,
    ) -> Confusion:
        """Count the pixels of two masks.

        Parameters
        ----------
        prediction, truth : array_like, same shape
            Everything but 0 is foreground.
        ignore : array_like of bool, same shape, optional
            True where a pixel does not count.

        Raises
        ------
        ImageError
            If shapes differ.
        """
        found, true = np.asarray(prediction, bool), np.asarray(truth, bool)
        found, true = _counted(found, true, ignore)
        tp = int(np.count_nonzero(found & true))
        fp = int(np.count_nonzero(found)) - tp
        fn = int(np.count_nonzero(true)) - tp
        return cls(tp=tp, fp=fp, fn=fn, tn=found.size - tp - fp - fn)

    def __add__(self, other: Confusion) -> Confusion:
        if not isinstance(other, Confusion):
            return NotImplemented
        return Confusion(
            tp=self.tp + other.tp,
            fp=self.fp + other.fp,
            fn=self.fn + other.fn,
            tn=self.tn + other.tn,
        )

    @property
    def dice(self) -> float:
        """2·TP / (2·TP + FP + FN), in [0, 1]; 1 if both masks are empty."""
        return _ratio(2 * self.tp, self.fp + self.fn)

    @property
    def jaccard(self) -> float:
        """TP / (TP + FP + FN), in [0, 1]; 1 if both masks are empty."""
        return _ratio(self.tp, self.fp + self.fn)

    @property
    def precision(self) -> float:
        """TP / (TP + FP), in [0, 1]; if nothing was found, 1 if nothing is true."""
        return _ratio(self.tp, self.fp, empty=not self.fn)

    @property
    def recall(self) -> float:
        """TP / (TP + FN), in [0, 1]; if nothing is true, 1 if nothing was found.

        Also called sensitivity or true positive rate, TPR.
        """
        return _ratio(self.tp, self.fn, empty=not self.fp)

    @property
    def specificity(self) -> float:
        """TN / (TN + FP), in [0, 1]; if all is true, 1 if all was found.

        Also called true negative rate, TNR.
        """
        return _ratio(self.tn, self.fp, empty=not self.fn)

    @property
    def accuracy(self) -> float:
        """(TP + TN) / all, in [0, 1]; 1 if there is no pixel."""
        return _ratio(self.tp + self.tn, self.fp + self.fn)

    @property
    def cohen_kappa(self) -> float:
        """Agreement beyond chance, in [−1, 1].

        (pₒ − pₑ) / (1 − pₑ), with the observed agreement pₒ and the agreement pₑ that
        two independent masks of the same areas would reach by chance; 1 where pₑ is
        1, as then both masks are all background or all foreground.
        """
        same = self.tp * self.tn - self.fp * self.fn
        other = (self.tp + self.fp) * (self.fp + self.tn)
        other += (self.tp + self.fn) * (self.fn + self.tn)
        return 2 * same / other if other else 1.0


def dice(
    prediction: ArrayLike, truth: ArrayLike, *, ignore: ArrayLike | None = None
) -> float:
    """Dice coefficient of two masks, 2·|A ∩ B| / (|A| + |B|); 1 if both are empty.

    Pixels where `ignore` is True do not count. Raises ImageError if shapes differ.
    """
    return Confusion.of(prediction, truth, ignore=ignore).dice


def jaccard(
    prediction: ArrayLike, truth: ArrayLike, *, ignore: ArrayLike | None = None
) -> float:
    """Jaccard index of two masks, |A ∩ B| / |A ∪ B|; 1 if both are empty.

    Pixels where `ignore` is True do not count. Raises ImageError if shapes differ.
    """
    return Confusion.of(prediction, truth, ignore=ignore).jaccard


def precision(
    prediction: ArrayLike, truth: ArrayLike, *, ignore: ArrayLike | None = None
) -> float:
    """Share of what was found that is true; 1 if both masks are empty.

    Pixels where `ignore` is True do not count. Raises ImageError if shapes differ.
    """
    return Confusion.of(prediction, truth, ignore=ignore).precision


def recall(
    prediction: ArrayLike, truth: ArrayLike, *, ignore: ArrayLike | None = None
) -> float:
    """Share of what is true that was found (TPR); 1 if both masks are empty.

    Pixels where `ignore` is True do not count. Raises ImageError if shapes differ.
    """
    return Confusion.of(prediction, truth, ignore=ignore).recall


def specificity(
    prediction: ArrayLike, truth: ArrayLike, *, ignore: ArrayLike | None = None
) -> float:
    """Share of true background that was left out (TNR); 1 if both masks are full.

    Pixels where `ignore` is True do not count. Raises ImageError if shapes differ.
    """
    return Confusion.of(prediction, truth, ignore=ignore).specificity


def accuracy(
    prediction: ArrayLike, truth: ArrayLike, *, ignore: ArrayLike | None = None
) -> float:
    """Share of pixels on which two masks agree; 1 if there is no pixel.

    Pixels where `ignore` is True do not count. Raises ImageError if shapes differ.
    """
    return Confusion.of(prediction, truth, ignore=ignore).accuracy


def cohen_kappa(
    prediction: ArrayLike, truth: ArrayLike, *, ignore: ArrayLike | None = None
) -> float:
    """Agreement of two masks beyond chance, see `Confusion.cohen_kappa`.

    Pixels where `ignore` is True do not count. Raises ImageError if shapes differ.
    """
    return Confusion.of(prediction, truth, ignore=ignore).cohen_kappa


def roc_auc(
    scores: ArrayLike, truth: ArrayLike, *, ignore: ArrayLike | None = None
) -> float:
    """Area under the receiver operating characteristic.

    The chance that a true pixel scores higher than one of the background, ties
    counting half: the Mann–Whitney statistic, computed from ranks.

    Parameters
    ----------
    scores : array_like of float
        The higher, the likelier foreground; only their order matters.
    truth : array_like, same shape
        Everything but 0 is foreground.
    ignore : array_like of bool, same shape, optional
        True where a pixel does not count.

    Returns
    -------
    float
        In [0, 1]; nan if the truth is all foreground or all background, or if a
        score is nan.

    Raises
    ------
    ImageError
        If shapes differ.
    """
    from scipy.stats import rankdata  # slow to import

    values, true = _counted(np.asarray(scores), np.asarray(truth, bool), ignore)
    positives = int(np.count_nonzero(true))
    negatives = true.size - positives
    if not positives or not negatives:
        return float("nan")
    excess = rankdata(values)[true].sum() - positives * (positives + 1) / 2
    return float(excess / (positives * negatives))


def _counted(
    found: NDArray[_Scalar], true: NDArray[np.bool_], ignore: ArrayLike | None
) -> tuple[NDArray[_Scalar], NDArray[np.bool_]]:
    """Both as vectors of the pixels that count."""
    if found.shape != true.shape:
        raise ImageError(
            f"The prediction has shape {found.shape}, but the truth has {true.shape}."
        )
    if ignore is None:
        return found.ravel(), true.ravel()
    left_out = np.asarray(ignore, bool)
    if left_out.shape != true.shape:
        raise ImageError(
            f"The mask of what to ignore has shape {left_out.shape}, but the truth "
            f"has {true.shape}."
        )
    return found[~left_out], true[~left_out]


def _ratio(right: int, wrong: int, *, empty: bool = True) -> float:
    total = right + wrong
    return right / total if total else float(empty)
