"""How readily a trained model tells of something, chosen on validation images."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from napari_fovea.inference.dense import DenseReader
from napari_fovea.inference.detect import DetectorReader
from napari_fovea.inference.reading import complete
from napari_fovea.metrics import dice
from napari_fovea.networks import DenseConfig, MaskRCNNConfig
from napari_fovea.training.detection import found_ap
from napari_fovea.training.samples import VOID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_fovea.models import Model
    from napari_fovea.training.samples import Sample

_SHIFTS = np.linspace(-1.5, 1.5, 31)
_SCORES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def calibrated(model: Model, samples: Sequence[Sample]) -> tuple[Model, float]:
    r"""Shift the logit of background so that the mean Dice is highest.

    .. math::

        b^* = \arg\max_b \frac{1}{n} \sum_i
            \mathrm{Dice}\big(\sigma(\mathrm{logit}(1 - p_i) - b) > \tfrac12, T_i\big)

    with the probability p of background and the true foreground T. Losses that join
    regions and pixels make outlines a little too wide or too narrow; the shift takes
    that back, and becomes part of the bias of the last layer. Of a detector it is the
    least score of what it tells that is chosen, by AP.

    Parameters
    ----------
    model : Model
        Gives every pixel one of two classes, or finds objects.
    samples : sequence of Sample
        Validation images.

    Returns
    -------
    model : Model
        The calibrated one; that which was passed in is left alone.
    shift : float
        b, by which the logit of background was raised. 0 where there is nothing to
        choose by, or the model gives no pixel its class.
    """
    if isinstance(model.config, MaskRCNNConfig):
        return _with_score(model, samples), 0.0
    last = getattr(model.network, "out", None)
    config = model.config
    known = isinstance(config, DenseConfig) and isinstance(last, nn.Conv2d)
    if not (samples and known and len(model.classes) == 2):
        return model, 0.0
    reader = DenseReader(model, next(model.network.parameters()).device)
    scores = np.zeros(len(_SHIFTS))
    for sample in samples:
        outputs = complete(
            reader.read(sample.image, scale=(1.0, 1.0), cancelled=lambda: False)
        ).outputs
        odds = torch.logit(outputs[0].double(), eps=1e-12).cpu().numpy()
        classes = sample.classes.numpy()
        void, truth = classes == VOID, (classes > 0) & (classes != VOID)
        scores += [dice(odds + b < 0, truth, ignore=void) for b in _SHIFTS]
    # Of shifts as good the smallest.
    order = np.lexsort((np.abs(_SHIFTS), -scores.round(9)))
    shift = float(_SHIFTS[order[0]])
    network = copy.deepcopy(model.network)
    bias: torch.Tensor = network.get_parameter("out.bias")
    with torch.no_grad():
        # A single logit is that of the foreground.
        bias[0] += shift if len(bias) > 1 else -shift
    return replace(model, network=network), shift


def _with_score(model: Model, samples: Sequence[Sample]) -> Model:
    """Let a detector tell objects from the score on that is best for the mean AP."""
    known = [s for s in samples if s.instances is not None]
    if not known:
        return model
    device = next(model.network.parameters()).device
    scores = []
    for score in _SCORES:
        reader = DetectorReader(model, device, score=score)
        scores.append(float(np.mean([found_ap(reader, s) for s in known])))
    best = _SCORES[int(np.argmax(scores))]
    return replace(model, scan={**model.scan, "score": best})
