"""Finding objects with a detector."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_fovea.networks.mask_rcnn import Detections, paste

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from napari_fovea.models import Model

SCORE = 0.5
"""Least score of an object that is shown."""


@dataclass(frozen=True)
class Detected:
    """What a detector found in an image.

    Attributes
    ----------
    outputs : ndarray of float32, shape (K, H, W)
        Class probabilities.
    instances : ndarray of int32, shape (H, W)
        Objects, numbered from 1 by falling score.
    labels : ndarray of uint8, shape (H, W)
        Class of the object that each pixel belongs to.
    scores : ndarray of float32, shape (n,)
        Score of object i + 1.
    """

    outputs: NDArray[np.float32]
    instances: NDArray[np.int32]
    labels: NDArray[np.uint8]
    scores: NDArray[np.float32]


def ready(model: Model, device: torch.device) -> nn.Module:
    """Copy the network to a device in the memory layout it is fastest in."""
    network = copy.deepcopy(model.network).eval().to(device)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def detect(
    network: nn.Module, image: torch.Tensor, *, model: Model, score: float = SCORE
) -> Detected:
    """Find the objects of an image (C, H, W).

    Parameters
    ----------
    network : nn.Module
        From `ready`.
    image : Tensor of float32, shape (C, H, W)
        Normalised.
    model : Model
        Tells the classes.
    score : float
        Least score of an object that is kept.
    """
    with torch.inference_mode():
        batch = image[None].contiguous(memory_format=torch.channels_last)
        found: Detections = network(batch)[0]
    kept = found.scores >= score
    found = Detections(
        boxes=found.boxes[kept],
        scores=found.scores[kept],
        labels=found.labels[kept],
        masks=found.masks[kept],
        classes=found.classes,
    )
    height, width = image.shape[1:]
    instances, outputs = paste(found, (height, width))
    # Those that another hides have no pixels: number what is left.
    shown = np.unique(instances[instances > 0])
    numbers = np.zeros(len(found) + 1, dtype=np.int32)
    numbers[shown] = np.arange(1, len(shown) + 1)
    classes = np.zeros(len(found) + 1, dtype=np.uint8)
    classes[1:] = found.labels.cpu().numpy()
    scores = found.scores.float().cpu().numpy()
    return Detected(outputs, numbers[instances], classes[instances], scores[shown - 1])
