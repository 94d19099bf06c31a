"""What a network is asked about a region: the evidence for a class there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from napari_fovea.errors import AttentionError
from napari_fovea.inference.detect import least_score
from napari_fovea.networks import Ensemble, MaskRCNN
from napari_fovea.networks.mask_rcnn import paste

if TYPE_CHECKING:
    from torch import nn

    from napari_fovea.inference.region import Region
    from napari_fovea.models import Model


@dataclass(frozen=True)
class Asked:
    """Evidence with a gradient.

    Attributes
    ----------
    label : int
        The class it speaks for.
    log_odds : Tensor, scalar
        Its mean over the region.
    box : tuple of float or None
        Top, left, bottom, right of a detector's box, in pixels of what it saw.
    """

    label: int
    log_odds: torch.Tensor
    box: tuple[float, float, float, float] | None = None


def class_of(model: Model, target: int | str | None) -> int | None:
    """Find the number of a class by its number or name.

    Raises
    ------
    AttentionError
        If the model has no such class.
    """
    if target is None:
        return None
    names = model.classes
    if isinstance(target, str) and target in names:
        return names.index(target)
    if isinstance(target, int | np.integer) and 0 <= target < len(names):
        return int(target)
    known = ", ".join(f"{i} ({name})" for i, name in enumerate(names))
    raise AttentionError(
        f"Model {model.name!r} knows no class {target!r}; expected one of {known}."
    )


def ask(
    network: nn.Module,
    model: Model,
    x: torch.Tensor,
    region: Region,
    label: int | None,
) -> Asked:
    """Run a network and ask it about a region.

    Parameters
    ----------
    network : nn.Module
        The model's, made ready.
    model : Model
        Tells which outputs make a class.
    x : Tensor, shape (1, C, h, w)
        What the network is shown.
    region : Region
        In pixels of what it is shown.
    label : int or None
        The class; by default the one that the network gives the region.

    Returns
    -------
    Asked
    """
    if isinstance(network, MaskRCNN):
        return _ask_box(network, model, x, region, label)
    rows, columns = (torch.from_numpy(i).to(x.device) for i in region.pixels)
    # An ensemble's own logits end where its probabilities round to 0 or 1, and have no
    # slope there; its members' do not.
    members = list(network.members) if isinstance(network, Ensemble) else [network]
    each = [
        _log_outputs(member(x)[0][:, rows, columns], count=len(model.outputs))
        for member in members
    ]
    logs = torch.stack(each).logsumexp(0) - math.log(len(each))  # (C, n)
    if label is None:
        label = _predicted(model, logs)
    return Asked(label, _log_odds(model, logs, label).mean())


def _ask_box(
    network: MaskRCNN,
    model: Model,
    x: torch.Tensor,
    region: Region,
    label: int | None,
) -> Asked:
    """Ask a detector for the class of the object that holds the region best."""
    height, width = x.shape[-2:]
    levels = network.features(x)
    found = network.detect(levels, (height, width))[0].to("cpu")
    instances, _ = paste(found, (height, width))
    # As `segment` shows them: each pixel belongs to one object, or to none.
    pixels = np.bincount(instances[region.pixels], minlength=len(found) + 1)[1:]
    pixels[found.scores.numpy() < least_score(model)] = 0
    if pixels.any():
        best = int(pixels.argmax())
        box = found.boxes[best].clone()
        if label is None:
            label = model.outputs[int(found.labels[best])]
    else:
        box = _box_around(region, (height, width), least=network.config.anchors[0])
    logits = network.box_logits(levels, [box[None].to(x.device)])  # (1, C)
    logs = _log_outputs(logits.T, count=len(model.outputs))
    if label is None:
        label = _predicted(model, logs)
    left, top, right, bottom = box.tolist()
    odds = _log_odds(model, logs, label).mean()
    return Asked(label, odds, (top, left, bottom, right))


def _box_around(region: Region, size: tuple[int, int], *, least: float) -> torch.Tensor:
    """Box of a region, no smaller than what a detector looks for."""
    box = torch.tensor(region.box, dtype=torch.float32)
    middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    half = half.clamp(min=least / 2)
    limit = torch.tensor(size, dtype=torch.float32)
    low, high = (middle - half).clamp(min=0), torch.minimum(middle + half, limit)
    return torch.cat([low.flip(0), high.flip(0)])  # x before y


def _log_outputs(logits: torch.Tensor, *, count: int) -> torch.Tensor:
    """Logarithms (C, n) of outputs' probabilities, finite where these round to 0."""
    logits = logits.float()
    if len(logits) == 1 and count == 2:
        return functional.logsigmoid(torch.cat([-logits, logits]))
    return logits.log_softmax(0)


def _log_odds(model: Model, logs: torch.Tensor, label: int) -> torch.Tensor:
    """Log p − log(1 − p) of a class (n,), of logarithms of outputs (C, n)."""
    mine = torch.tensor([c == label for c in model.outputs], device=logs.device)
    # 1 − p is what the other outputs have: no difference is taken of numbers near 1.
    odds: torch.Tensor = logs[mine].logsumexp(0) - logs[~mine].logsumexp(0)
    return odds


def _predicted(model: Model, logs: torch.Tensor) -> int:
    """Class of the largest mean probability; where background is as large, that."""
    outputs = logs.detach().exp().mean(1)
    return int(model.class_probabilities(outputs).argmax())
