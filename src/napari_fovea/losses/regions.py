"""Losses that look at how far whole regions overlap."""

from __future__ import annotations

import torch

from napari_fovea.losses.dense import Pixels, full_precision

_LINEAR = 1e-6  # below this, focal Tversky is a straight line


def dice_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    include_background: bool = False,
) -> torch.Tensor:
    r"""One minus the soft Dice coefficient, averaged over classes.

    .. math::
        L = \frac{1}{K} \sum_k 1 - \frac{2 \sum_n p_{k,n} g_{k,n}}
        {\sum_n p_{k,n} + \sum_n g_{k,n}}

    Equation (10) of the third paper; with `include_background`, one channel gives
    its two-class form (9), as one minus the mean of its two terms. Sums go over the
    whole batch, so that an image without foreground is no special case; 10⁻⁵ above
    and below the line make two empty regions agree.

    Parameters
    ----------
    logits, target, mask
        As for `cross_entropy`.
    include_background : bool
        Whether class 0 counts among the classes. It does not by default: it is
        mostly large and easy, and would hide the others.

    Returns
    -------
    Tensor of float32
        A scalar in [0, 1]; 0 if no pixel counts.

    Raises
    ------
    TrainingError
        As for `cross_entropy`.
    """
    from monai.losses.dice import DiceLoss  # slow to import

    with full_precision(logits):
        found, true = _regions(Pixels.of(logits, target, mask), include_background)
        loss: torch.Tensor = DiceLoss(batch=True)(found, true)
        return loss


def tversky_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    alpha: float = 0.3,
    beta: float = 0.7,
    include_background: bool = False,
) -> torch.Tensor:
    r"""One minus the soft Tversky index, averaged over classes.

    .. math::
        T_k = \frac{\sum_n p_{k,n} g_{k,n}}{\sum_n p_{k,n} g_{k,n}
        + \alpha \sum_n p_{k,n} (1 - g_{k,n}) + \beta \sum_n (1 - p_{k,n}) g_{k,n}},
        \quad L = \frac{1}{K} \sum_k 1 - T_k

    Equation (11) of the third paper. The papers sum over classes; the mean keeps the
    size of the loss when classes are added, and is the same for one foreground class.
    Sums and smoothing are those of `dice_loss`, which this equals for α = β = ½.

    Parameters
    ----------
    logits, target, mask, include_background
        As for `dice_loss`.
    alpha : float, at least 0
        Weight of false positives.
    beta : float, at least 0
        Weight of false negatives.

    Returns
    -------
    Tensor of float32
        A scalar in [0, 1]; 0 if no pixel counts.

    Raises
    ------
    TrainingError
        As for `cross_entropy`.
    """
    with full_precision(logits):
        pixels = Pixels.of(logits, target, mask)
        return _shortfalls(pixels, alpha, beta, include_background).mean()


def focal_tversky_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 0.75,
    include_background: bool = False,
) -> torch.Tensor:
    r"""Power of one minus the soft Tversky index, averaged over classes.

    .. math:: L = \frac{1}{K} \sum_k (1 - T_k)^\gamma

    Equation (14) of the third paper: γ is the exponent itself, not its inverse.
    Since the slope of a power γ < 1 has no bound at 0, the loss goes on as a straight
    line through 0 where 1 − T is below 10⁻⁶.

    Parameters
    ----------
    logits, target, mask, alpha, beta, include_background
        As for `tversky_loss`.
    gamma : float, above 0
        Exponent; below 1 it raises the loss of classes that are nearly right.

    Returns
    -------
    Tensor of float32
        A scalar in [0, 1]; 0 if no pixel counts.

    Raises
    ------
    TrainingError
        As for `cross_entropy`.
    """
    with full_precision(logits):
        pixels = Pixels.of(logits, target, mask)
        missing = _shortfalls(pixels, alpha, beta, include_background).clamp(min=0)
        power = missing.clamp(min=_LINEAR) ** gamma
        line = missing * _LINEAR ** (gamma - 1)
        return torch.where(missing > _LINEAR, power, line).mean()


def _shortfalls(
    pixels: Pixels, alpha: float, beta: float, include_background: bool
) -> torch.Tensor:
    """1 − T of every class, shape (K,)."""
    from monai.losses.tversky import TverskyLoss  # slow to import

    found, true = _regions(pixels, include_background)
    loss = TverskyLoss(alpha=alpha, beta=beta, batch=True, reduction="none")
    missing: torch.Tensor = loss(found, true)
    return missing


def _regions(
    pixels: Pixels, include_background: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and one-hot truth, (B, K, …), 0 where nothing counts."""
    counts = pixels.counts[:, None]
    found = pixels.logits.softmax(1) * counts
    true = torch.zeros_like(found).scatter_(1, pixels.target[:, None], 1.0) * counts
    first = 0 if include_background else 1
    return found[:, first:], true[:, first:]
