"""What tests of learning from strokes share: small models, and how they learn."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from skimage.measure import label

from following import followed
from napari_fovea import complete, segment
from napari_fovea.models import Model
from napari_fovea.training.finetune import fine_tune
from napari_fovea.training.recipes import STROKES
from small_networks import tiny

if TYPE_CHECKING:
    import pytest

    from napari_fovea.training.learned import Tuned
    from napari_fovea.training.painted import Annotation

NUCLEI = ("background", "nucleus")
DISCS = ((15, 20), (40, 60), (55, 25))


def made(name: str = "unet", *, outputs: int = 2, **changes: Any) -> Model:
    torch.manual_seed(0)
    network = tiny(name, classes=outputs, **changes)
    belongs = (0, 1, 1) if outputs == 3 else tuple(range(outputs))
    return Model(
        name,
        network,
        NUCLEI,
        belongs,
        depths=(0.0, 0.25, 0.75) if outputs == 3 else None,
    )


def swapped(strokes: np.ndarray) -> np.ndarray:
    """Half of the strokes of each class painted with the other, without a pattern."""
    wrong, rng = strokes.copy(), np.random.default_rng(0)
    for c in (1, 2):
        pieces = label(strokes == c, connectivity=2)
        chosen = rng.permutation(np.arange(1, pieces.max() + 1))[::2]
        wrong[(pieces > 0) & np.isin(pieces, chosen)] = 3 - c
    return wrong


def short(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Few, small steps, however fast the machine is."""
    small = {"side": 48, "views": 4, "batch_size": 2, "epochs": 3} | changes
    for name, recipe in STROKES.items():
        own = {k: v for k, v in small.items() if k != "side" or recipe.side}
        monkeypatch.setitem(STROKES, name, replace(recipe, **own))


def weights(model: Model) -> dict[str, torch.Tensor]:
    return network_weights(model.network)


def network_weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def instant(model: Model, *annotations: Annotation, **options: Any) -> Tuned:
    return followed(fine_tune(annotations, model, device="cpu", **options))[1]


def thorough(model: Model, *annotations: Annotation, **options: Any) -> Any:
    run = fine_tune(
        annotations, model, mode="thorough", device="cpu", **({"seconds": 60} | options)
    )
    return followed(run)


def right(model: Model, picture: np.ndarray) -> float:
    labels = complete(segment(picture, model, device="cpu")).labels
    return float(((labels > 0) == (picture > 120)).mean())
