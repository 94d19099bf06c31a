"""Which reader suits a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_fovea.errors import ModelError
from napari_fovea.inference.dense import DenseReader
from napari_fovea.inference.detect import DetectorReader
from napari_fovea.inference.joint import JointReader, member_shape
from napari_fovea.inference.retina import RetinaReader
from napari_fovea.networks import MaskRCNNConfig, RetinaConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from napari_fovea.device import Backend
    from napari_fovea.inference.attention import Wanted
    from napari_fovea.inference.reading import Reader
    from napari_fovea.inference.tiles import Tiling
    from napari_fovea.models import Model
    from napari_fovea.retina import Fusion, Policy


def reader_for(
    model: Model,
    device: str | torch.device | Backend,
    shape: tuple[int, int],
    *,
    policy: str | Policy | None = None,
    fusion: str | Fusion | None = None,
    budget: int | None = None,
    tiling: Tiling | None = None,
    batch_size: int | None = None,
    attention: Sequence[Wanted] = (),
) -> Reader:
    """Choose how a model reads planes of a shape; see `segment`."""
    if isinstance(model.config, RetinaConfig):
        return RetinaReader(
            model,
            device,
            shape,
            policy=policy,
            fusion=fusion,
            budget=budget,
            batch_size=batch_size,
        )
    focus = {"policy": policy, "fusion": fusion, "budget": budget}
    for name, value in focus.items():
        if value is not None:
            kind = "ensemble" if model.members else f"{model.system} network"
            raise ModelError(
                f"Model {model.name!r} is an {kind} that moves no focus of its own; "
                f"expected no {name}: leave it out, or choose a retina model."
            )
    if model.members:
        members = [
            reader_for(
                member,
                device,
                member_shape(model, member, shape),
                tiling=tiling,
                batch_size=batch_size,
            )
            for member in model.members
        ]
        return JointReader(model, members)
    if isinstance(model.config, MaskRCNNConfig):
        return DetectorReader(model, device, tiling=tiling, attention=attention)
    return DenseReader(
        model,
        device,
        tiling=tiling,
        batch_size=batch_size,
        attention=attention,
    )
