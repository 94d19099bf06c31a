"""Attention networks for biomedical segmentation, and a look at where they look.

Names are imported when they are first used: importing the package brings in
neither torch nor Qt.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_fovea.inference import (
        AttentionMap,
        Segmentation,
        complete,
        segment,
        segment_files,
    )
    from napari_fovea.models import Model
    from napari_fovea.retina import FocusPath, RetinaGrid
    from napari_fovea.scale import segment_large

# Fresh memory comes by pages, and features of large planes take so many that fetching
# them took longer than half of the networks' sums. Torch asks for huge ones, on Linux,
# if it is told so before it is imported; it looks once.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_HOMES = {
    "AttentionMap": "inference",
    "FocusPath": "retina",
    "Model": "models",
    "RetinaGrid": "retina",
    "Segmentation": "inference",
    "complete": "inference",
    "segment": "inference",
    "segment_files": "inference",
    "segment_large": "scale",
}

__all__ = [
    "AttentionMap",
    "FocusPath",
    "Model",
    "RetinaGrid",
    "Segmentation",
    "complete",
    "segment",
    "segment_files",
    "segment_large",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module, metadata

    if name == "__version__":
        return metadata.version("napari-fovea")
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "__version__", *__all__])
