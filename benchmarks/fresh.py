"""Networks of the first paper's size, untrained, but as sure of what they see."""

from __future__ import annotations

import torch

from napari_fovea import Model
from napari_fovea.networks import build, named_configs

_HEADS = {"retina-vgg": "head", "retina-shared": "window"}
# H = 0.25 nats, of which a step of 82 % of a subarea follows, as of a trained one.
_SURE = 2.6


def paper(name: str) -> Model:
    """Build a retina in the paper's configuration whose steps are of a usual length.

    Parameters
    ----------
    name : str
        ``"retina-vgg"``, which sees crops, or ``"retina-shared"``.
    """
    torch.manual_seed(0)
    network = build(name, named_configs(name)["paper"])
    head = getattr(network, _HEADS[name])
    head[-1].bias.data.view(-1, 2)[:, 0] = _SURE
    return Model("paper", network.eval(), ("background", "cell"), (0, 1))
