"""Losses that join pixels and regions."""

from __future__ import annotations

import math

import torch

from napari_fovea.losses.dense import full_precision
from napari_fovea.losses.pixels import cross_entropy, weighted_cross_entropy
from napari_fovea.losses.regions import dice_loss, tversky_loss


def bce_dice_loss(
    logits: torch.Tensor, target: torch.Tensor, *, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum of cross-entropy and Dice loss.

    Parameters
    ----------
    logits, target, mask
        As for `cross_entropy`.

    Returns
    -------
    Tensor of float32
        A scalar of at least 0; 0 if no pixel counts.

    Raises
    ------
    TrainingError
        As for `cross_entropy`.
    """
    logits = logits.float()  # once, so that both gradients add up before rounding
    pixels = cross_entropy(logits, target, mask=mask)
    return pixels + dice_loss(logits, target, mask=mask)


def hybrid_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    share: float = 0.5,
    positive_weight: float = 0.7,
    alpha: float = 0.3,
    beta: float = 0.7,
) -> torch.Tensor:
    r"""Weighted cross-entropy and Tversky loss, mixed.

    .. math:: HL = k C_b + (1 - k) TL

    Equation (1) of the fourth paper, with both terms of the cross-entropy as
    negative log-likelihoods.

    Parameters
    ----------
    logits, target, mask
        As for `cross_entropy`.
    share : float, in [0, 1]
        k, the share of the cross-entropy.
    positive_weight : float, in [0, 1]
        Ω of `weighted_cross_entropy`.
    alpha, beta : float, at least 0
        Weights of false positives and negatives in `tversky_loss`.

    Returns
    -------
    Tensor of float32
        A scalar of at least 0; 0 if no pixel counts.

    Raises
    ------
    TrainingError
        As for `cross_entropy`.
    """
    logits = logits.float()  # once, so that both gradients add up before rounding
    pixels = weighted_cross_entropy(
        logits, target, mask=mask, positive_weight=positive_weight
    )
    regions = tversky_loss(logits, target, mask=mask, alpha=alpha, beta=beta)
    return share * pixels + (1 - share) * regions


def adaptive_log_hybrid_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    gamma: float = 0.1,
    omega: float = 10.0,
    epsilon: float = 0.5,
) -> torch.Tensor:
    r"""Hybrid loss whose slope grows towards its minimum.

    .. math::
        L = \begin{cases}
        \omega \ln (1 + HL / \epsilon) & HL < \gamma \\ HL - C & \text{otherwise}
        \end{cases}, \quad C = \gamma - \omega \ln (1 + \gamma / \epsilon)

    Equation (2) of the fourth paper. C joins the branches: the loss is continuous at
    γ, though its slope falls there from ω / (ε + γ) to 1.

    Parameters
    ----------
    logits, target, mask
        As for `hybrid_loss`, which is used with its defaults.
    gamma : float, above 0
        Hybrid loss at which the logarithm ends.
    omega : float, above 0
        Factor of the logarithm.
    epsilon : float, above 0
        Hybrid loss over which the logarithm bends.

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
        loss = hybrid_loss(logits, target, mask=mask)
        offset = gamma - omega * math.log1p(gamma / epsilon)
        # Rounding may leave a hybrid loss just below 0.
        logarithm = omega * torch.log1p(loss.clamp(min=0) / epsilon)
        return torch.where(loss < gamma, logarithm, loss - offset)
