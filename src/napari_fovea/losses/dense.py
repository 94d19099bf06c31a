"""What all losses of pixels share: their signature, checks and precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import torch

from napari_fovea.errors import TrainingError


class DenseLoss(Protocol):
    """A loss of pixels or voxels, as `LOSSES` lists them."""

    def __call__(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        *,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compare logits (B, C, …) with classes (B, …) where `mask` (B, …) is True."""
        ...


class Pixels(NamedTuple):
    """Checked inputs: what does not count is 0 and passes no gradient.

    Attributes
    ----------
    logits : Tensor of float32, shape (B, K, …)
        At least two classes, to go through a soft-max over K.
    target : Tensor of int64, shape (B, …)
        Classes 0 … K−1.
    counts : Tensor of bool, shape (B, …)
        What counts.
    """

    logits: torch.Tensor
    target: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def of(
        cls, logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None
    ) -> Pixels:
        """Check the inputs of a dense loss, and bring them into one form."""
        check_dense(logits, target, mask)
        logits, target = logits.float(), target.long()
        if mask is None:
            counts = torch.ones_like(target, dtype=torch.bool)
        else:
            counts = mask.bool()
            # Not a product: it would turn the NaN or ∞ of a place that does not
            # count into NaN, and classes like 255 have no place in a one-hot.
            logits = torch.where(counts[:, None], logits, 0.0)
            target = torch.where(counts, target, 0)
        if logits.shape[1] == 1:
            # sigmoid(x) is the second of softmax(0, x): one form serves both.
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        check_classes(target, logits.shape[1])
        return cls(logits, target, counts)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Average values (B, …) over what counts; 0 if nothing does."""
        return masked_mean(values, self.counts)


def masked_mean(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Average finite values over what counts; 0, with zero gradient, if nothing."""
    return (values * counts).sum() / counts.sum().clamp(min=1)


def full_precision(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Switch autocast off on the tensor's device."""
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def check_shape(name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    """Raise TrainingError unless the tensor has the shape expected of it."""
    if tuple(tensor.shape) != expected:
        raise TrainingError(
            f"The loss got a {name} of shape {tuple(tensor.shape)}, but needs one of "
            f"shape {expected}."
        )


def check_classes(target: torch.Tensor, classes: int) -> None:
    """Raise TrainingError unless all classes are within 0 … classes − 1.

    On a GPU, a class out of range would otherwise end the whole process.
    """
    if not target.numel():
        return
    least, most = (int(value) for value in target.aminmax())
    if least < 0 or most >= classes:
        raise TrainingError(
            f"The target holds class {least if least < 0 else most}, but the logits "
            f"know the classes 0 to {classes - 1}: mask out what does not count."
        )


def check_dense(
    logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None
) -> None:
    """Raise TrainingError unless the shapes of a dense loss's inputs agree."""
    if logits.ndim < 2 or not logits.shape[1]:
        raise TrainingError(
            f"The loss got logits of shape {tuple(logits.shape)}, but needs "
            f"(batch, classes, …)."
        )
    shape = (logits.shape[0], *logits.shape[2:])
    expected = f"{shape} to go with logits of shape {tuple(logits.shape)}"
    if tuple(target.shape) != shape:
        raise TrainingError(
            f"The loss got a target of shape {tuple(target.shape)}, but needs "
            f"{expected}."
        )
    if mask is not None and tuple(mask.shape) != shape:
        raise TrainingError(
            f"The loss got a mask of shape {tuple(mask.shape)}, but needs {expected}."
        )
    if target.is_floating_point() or target.is_complex():
        raise TrainingError(
            f"The loss got a target of {target.dtype}, but needs classes as integers."
        )
