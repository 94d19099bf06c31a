"""The four losses of Mask R-CNN."""

from __future__ import annotations

import torch
from torch.nn import functional

from napari_fovea.errors import TrainingError
from napari_fovea.losses.dense import (
    check_classes,
    check_shape,
    full_precision,
    masked_mean,
)


def objectness_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of anchors, averaged over those that count.

    Parameters
    ----------
    logits : Tensor of float, shape (A,)
        Object against background, before the sigmoid.
    labels : Tensor of int, shape (A,)
        1 for an object, 0 for background, −1 for an anchor that does not count.

    Returns
    -------
    Tensor of float32
        A scalar of at least 0; 0 if no anchor counts.

    Raises
    ------
    TrainingError
        If shapes disagree.
    """
    check_shape("vector of labels", labels, (logits.numel(),))
    check_shape("vector of logits", logits, (logits.numel(),))
    with full_precision(logits):
        counts = labels >= 0
        check_classes(torch.where(counts, labels, 0), 2)
        scores = torch.where(counts, logits.float(), 0.0)
        losses = functional.binary_cross_entropy_with_logits(
            scores, (labels > 0).float(), reduction="none"
        )
        return masked_mean(losses, counts)


def box_loss(
    predicted: torch.Tensor,
    target: torch.Tensor,
    *,
    normaliser: float,
    beta: float = 1 / 9,
) -> torch.Tensor:
    r"""Smooth L1 distance of box offsets, summed and divided by `normaliser`.

    .. math::
        L = \frac{1}{n} \sum_i \begin{cases}
        d_i^2 / 2\beta & |d_i| < \beta \\ |d_i| - \beta / 2 & \text{otherwise}
        \end{cases}

    Parameters
    ----------
    predicted, target : Tensor of float, shape (N, 4)
        Encoded offsets of the boxes that belong to objects.
    normaliser : float
        n, mostly the number of anchors or regions drawn, negative ones included;
        1 where it is less.
    beta : float, at least 0
        Where the parabola turns into a straight line.

    Returns
    -------
    Tensor of float32
        A scalar of at least 0; 0 if there is no box.

    Raises
    ------
    TrainingError
        If shapes disagree.
    """
    check_shape("set of predicted boxes", predicted, (len(predicted), 4))
    check_shape("set of target boxes", target, (len(predicted), 4))
    with full_precision(predicted):
        total = functional.smooth_l1_loss(
            predicted.float(), target.float(), reduction="sum", beta=beta
        )
        return total / max(normaliser, 1)


def class_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of regions, averaged over those that count.

    Parameters
    ----------
    logits : Tensor of float, shape (R, K)
        Classes before the soft-max, background among them.
    labels : Tensor of int, shape (R,)
        Classes 0 … K−1, −1 for a region that does not count.

    Returns
    -------
    Tensor of float32
        A scalar of at least 0; 0 if no region counts.

    Raises
    ------
    TrainingError
        If shapes disagree, or a class has no logit.
    """
    if logits.ndim != 2 or not logits.shape[1]:
        raise TrainingError(
            f"The loss got logits of shape {tuple(logits.shape)}, but needs "
            f"(regions, classes)."
        )
    check_shape("vector of labels", labels, (len(logits),))
    with full_precision(logits):
        counts = labels >= 0
        classes = torch.where(counts, labels, 0).long()
        check_classes(classes, logits.shape[1])
        scores = torch.where(counts[:, None], logits.float(), 0.0)
        losses = functional.cross_entropy(scores, classes, reduction="none")
        return masked_mean(losses, counts)


def mask_loss(
    logits: torch.Tensor, labels: torch.Tensor, masks: torch.Tensor
) -> torch.Tensor:
    """Binary cross-entropy of masks, on the channel of each object's true class.

    Parameters
    ----------
    logits : Tensor of float, shape (N, K, m, m)
        A mask per class, before the sigmoid. The other classes' get no gradient.
    labels : Tensor of int, shape (N,)
        Classes 0 … K−1.
    masks : Tensor of float or bool, shape (N, m, m)
        How far each pixel belongs to the object, in [0, 1].

    Returns
    -------
    Tensor of float32
        A scalar of at least 0, averaged over objects and pixels; 0 without objects.

    Raises
    ------
    TrainingError
        If shapes disagree, or a class has no channel.
    """
    if logits.ndim != 4:
        raise TrainingError(
            f"The loss got logits of shape {tuple(logits.shape)}, but needs "
            f"(objects, classes, height, width)."
        )
    objects, classes, *size = logits.shape
    check_shape("vector of labels", labels, (objects,))
    check_shape("set of masks", masks, (objects, *size))
    check_classes(labels, classes)
    with full_precision(logits):
        rows = torch.arange(objects, device=logits.device)
        own = logits[rows, labels.long()].float()  # (N, m, m)
        total = functional.binary_cross_entropy_with_logits(
            own, masks.float(), reduction="sum"
        )
        return total / max(own.numel(), 1)
