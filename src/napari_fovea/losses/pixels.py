"""Losses that look at each pixel by itself."""

from __future__ import annotations

import torch
from torch.nn import functional

from napari_fovea.losses.dense import Pixels, full_precision


def cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, *, mask: torch.Tensor | None = None
) -> torch.Tensor:
    r"""Cross-entropy, averaged over the pixels that count.

    .. math:: L = -\frac{1}{N} \sum_n \log p_n(g_n)

    With one channel this is binary cross-entropy.

    Parameters
    ----------
    logits : Tensor of float, shape (B, C, …)
        Network outputs before the sigmoid (C = 1) or soft-max (C ≥ 2). Computed in
        float32 whatever their type, under autocast, too.
    target : Tensor of int, shape (B, …)
        Classes 0 … C−1; 0 and 1 with one channel. Anything where nothing counts.
    mask : Tensor of bool, shape (B, …), optional
        Pixels that count; all by default. The others influence neither the value
        nor any gradient.

    Returns
    -------
    Tensor of float32
        A scalar of at least 0; 0 if no pixel counts.

    Raises
    ------
    TrainingError
        If shapes disagree, or a class that counts has no channel.
    """
    with full_precision(logits):
        pixels = Pixels.of(logits, target, mask)
        return pixels.mean(_surprise(pixels))


def weighted_cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    positive_weight: float = 0.7,
) -> torch.Tensor:
    r"""Cross-entropy that weighs foreground with Ω and background with 1 − Ω.

    .. math::
        L = -\frac{1}{N} \sum_n \Omega g_n \log p_n
            + (1 - \Omega) (1 - g_n) \log (1 - p_n)

    Equation (8) of the third paper, where Ω is called β, and the balanced
    cross-entropy of the fourth. The sum is divided by the number of pixels, not by
    that of weights: with Ω = ½ this is half the cross-entropy.

    Parameters
    ----------
    logits, target, mask
        As for `cross_entropy`. With several classes, all but class 0 are
        foreground.
    positive_weight : float, in [0, 1]
        Ω.

    Returns
    -------
    Tensor of float32
        A scalar of at least 0; 0 if no pixel counts.

    Raises
    ------
    TrainingError
        As for `cross_entropy`.
    """
    with full_precision(logits):
        pixels = Pixels.of(logits, target, mask)
        surprise = _surprise(pixels)
        foreground = pixels.target > 0
        return pixels.mean(
            torch.where(
                foreground, positive_weight * surprise, (1 - positive_weight) * surprise
            )
        )


def _surprise(pixels: Pixels) -> torch.Tensor:
    return functional.cross_entropy(pixels.logits, pixels.target, reduction="none")
