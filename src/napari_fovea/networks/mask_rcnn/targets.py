"""What the network learns from and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.types import Device


@dataclass(frozen=True, slots=True)
class Target:
    """Objects of one image.

    Parameters
    ----------
    boxes : Tensor of float32, shape (N, 4)
        x₀, y₀, x₁, y₁ in pixels; a pixel covers [i, i + 1).
    labels : Tensor of int64, shape (N,)
        Classes 1 … K−1.
    ids : Tensor of int64, shape (N,)
        Which value in `instances` is each object's mask.
    instances : Tensor of int32, shape (H, W)
        Instance map, 0 for background: N masks in the memory of one.
    void : Tensor of bool, shape (H, W), optional
        Pixels that count for nothing: what lies mostly there is no negative.
    """

    boxes: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    instances: torch.Tensor
    void: torch.Tensor | None = None

    @classmethod
    def from_instances(
        cls,
        instances: torch.Tensor,
        classes: torch.Tensor | None = None,
        *,
        void: torch.Tensor | None = None,
    ) -> Target:
        """Objects of an instance map.

        Parameters
        ----------
        instances : Tensor of int, shape (H, W)
            Instance ids, 0 for background; gaps are fine.
        classes : Tensor of int, shape (H, W), optional
            Class of each pixel; an object gets its most frequent one that is not 0.
            Without it every object has class 1. An object none of whose pixels has
            a class becomes void.
        void : Tensor of bool, shape (H, W), optional
            Pixels that count for nothing, whatever the other two say.
        """
        if void is not None:
            instances = instances.masked_fill(void, 0)
        height, width = instances.shape
        ids, inverse = torch.unique(instances, return_inverse=True)
        n = len(ids)
        rows, columns = torch.arange(height), torch.arange(width)
        y = rows[:, None].expand(height, width).reshape(-1).to(inverse.device)
        x = columns.expand(height, width).reshape(-1).to(inverse.device)
        flat = inverse.reshape(-1)
        boxes = torch.stack(
            [
                _extreme(flat, n, x, "amin"),
                _extreme(flat, n, y, "amin"),
                _extreme(flat, n, x, "amax") + 1,
                _extreme(flat, n, y, "amax") + 1,
            ],
            dim=1,
        ).float()  # (n, 4)
        kept = ids > 0
        labels = torch.ones_like(ids, dtype=torch.int64)
        if classes is not None:
            known = classes.long().reshape(-1)
            if void is not None:
                known = known.masked_fill(void.reshape(-1), 0)
            k = int(known.max()) + 1 if len(known) else 1
            counts = torch.bincount(flat * k + known, minlength=n * k).view(n, k)
            counts[:, 0] = 0
            labels = counts.argmax(1)
            classless = kept & (counts.sum(1) == 0)
            if classless.any():
                hidden = classless[inverse]  # (H, W)
                void = hidden if void is None else void | hidden
                instances = instances.masked_fill(hidden, 0)
                kept = kept & ~classless
        return cls(
            boxes=boxes[kept],
            labels=labels[kept],
            ids=ids[kept].long(),
            instances=instances.int(),
            void=void,
        )

    def to(self, device: Device) -> Target:
        """Return the same on another device."""
        return Target(
            boxes=self.boxes.to(device),
            labels=self.labels.to(device),
            ids=self.ids.to(device),
            instances=self.instances.to(device),
            void=None if self.void is None else self.void.to(device),
        )


@dataclass(frozen=True, slots=True)
class Detections:
    """Objects found in one image, the surest first.

    Parameters
    ----------
    boxes : Tensor of float32, shape (N, 4)
        x₀, y₀, x₁, y₁ in pixels, within the image.
    scores : Tensor of float32, shape (N,)
        Probability of the class, in [0, 1].
    labels : Tensor of int64, shape (N,)
        Classes 1 … K−1.
    masks : Tensor of float32, shape (N, m, m)
        Probability of belonging to the object, over the box.
    classes : int
        K, background included.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor
    classes: int

    def __len__(self) -> int:
        return len(self.scores)

    def to(self, device: Device) -> Detections:
        """Return the same on another device."""
        return Detections(
            boxes=self.boxes.to(device),
            scores=self.scores.to(device),
            labels=self.labels.to(device),
            masks=self.masks.to(device),
            classes=self.classes,
        )


def _extreme(
    groups: torch.Tensor, n: int, values: torch.Tensor, which: str
) -> torch.Tensor:
    out = torch.zeros(n, dtype=values.dtype, device=values.device)
    return out.scatter_reduce(0, groups, values, which, include_self=False)
