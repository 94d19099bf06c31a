"""Whether a run goes on with what an earlier one has left."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from napari_fovea.models import Model
    from napari_fovea.scale.plan import Plan
    from napari_fovea.scale.source import Level


def what_decides(
    model: Model, level: Level, plan: Plan, settings: Mapping[str, Any]
) -> str:
    """Hash all that the result depends on but the values of the image.

    Parameters
    ----------
    model : Model
        Its weights and what is made of them.
    level : Level
        Its shape, type and place in the world.
    plan : Plan
        How it is cut.
    settings : mapping
        How blocks are segmented, ready for JSON.
    """
    told = {
        "classes": model.classes,
        "outputs": model.outputs,
        "depths": model.depths,
        "normalisation": asdict(model.normalisation),
        "object_diameter": model.object_diameter,
        "pixel_size": model.pixel_size,
        "scan": dict(model.scan),
        "config": model.config.model_dump(mode="json"),
        "shape": list(map(int, level.array.shape)),
        "dtype": str(level.array.dtype),
        "axes": level.axes,
        "scale": dict(level.scale),
        "translate": dict(level.translate),
        "plan": asdict(plan),
        "settings": dict(settings),
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, value in sorted(model.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def same_marks(a: Sequence[str | None], b: Sequence[str | None]) -> bool:
    """Tell whether two images hold the same, as far as both could be read."""
    return len(a) == len(b) and all(
        x == y or x is None or y is None for x, y in zip(a, b, strict=True)
    )
