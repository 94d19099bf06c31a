"""What made a segmentation: model, settings, image and machine."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from napari_fovea import device as devices

if TYPE_CHECKING:
    import torch

    from napari_fovea.images import Planes
    from napari_fovea.models import Model


def provenance_of(
    model: Model, planes: Planes, where: torch.device, *, settings: dict[str, Any]
) -> dict[str, Any]:
    """Tell it in what JSON can hold."""
    packages = ("napari-fovea", "torch", "numpy", "scikit-image")
    return {
        "model": model.name,
        "system": model.system,
        "classes": list(model.classes),
        "settings": settings,
        "image": {
            "shape": [*planes.lead, *planes.shape],
            "channels": planes.channels,
            "type": str(planes.data.dtype),
            "axes": planes.axes,
        },
        "device": devices.describe(where),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()}
        | {p: version(p) for p in packages},
    }
