"""Small networks of every kind, for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from napari_fovea.networks import build

DENSE: dict[str, dict[str, Any]] = {
    "focusnet": {"width": 8},
    "focusnet-plus": {
        "stem": 4,
        "widths": (8, 12, 16),
        "units": (1, 2, 1),
        "side": 4,
        "last": (6,),
    },
    "r2-attention-unet": {"width": 4, "depth": 4},
    "unet": {"width": 4, "depth": 3},
}
TINY: dict[str, dict[str, Any]] = DENSE | {
    "ensemble": {"member": "unet", "settings": DENSE["unet"], "members": 2},
    "retina-vgg": {"d": 32, "r": 2, "width": 4, "units": 8, "norm": True},
    "retina-shared": {
        "d": 32,
        "r": 2,
        "width": 4,
        "units": 8,
        "norm": True,
        "pyramid": 6,
    },
    "patch-center": {"d": 16, "width": 4, "units": 8},
    "mask-rcnn": {
        "backbone": "resnet18",
        "width": 8,
        "pyramid": 16,
        "head_width": 16,
        "mask_width": 8,
        "mask_layers": 1,
        "mask_side": 14,
        "before_inference": 30,
        "after_inference": 30,
        "score": 0.0,
    },
    "adapted": {"base": "unet", "settings": DENSE["unet"], "belongs": (0, 1)},
    "adapted-retina": {
        "base": "retina-vgg",
        "settings": {"d": 32, "r": 2, "width": 4, "units": 8, "norm": True},
        "belongs": (0, 1),
        "d": 32,
        "r": 2,
    },
}


def shuffled(network: nn.Module) -> nn.Module:
    """Make outputs depend on every weight and statistic, ready for inference."""
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point() and value.ndim <= 1:
            value.add_(torch.randn_like(value), alpha=0.1)
        elif name.startswith("reads."):  # nothing is read at first
            value.normal_(std=0.1)
    return network.eval().requires_grad_(False)


def changed(name: str, **changes: Any) -> dict[str, Any]:
    """Settings of a network, and of the one inside it, that agree."""
    settings = TINY[name] | changes
    if "settings" in settings and "settings" not in changes:
        both = {k: v for k, v in changes.items() if k in ("channels", "classes")}
        settings["settings"] = settings["settings"] | both
    if "belongs" in settings and "belongs" not in changes:
        settings["belongs"] = tuple(range(settings.get("classes", 2)))
    return settings


def tiny(name: str, **changes: Any) -> nn.Module:
    return shuffled(build(name, changed(name, **changes)))
