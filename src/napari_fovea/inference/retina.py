"""Scanning a normalised image with a retina network."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch

from napari_fovea.networks import RetinaConfig, RetinaVGG
from napari_fovea.retina import (
    FUSIONS,
    CropLook,
    Fusion,
    Looked,
    Policy,
    Scan,
    scan,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from napari_fovea.models import Model

BUDGET_PER_PIXEL = 400 / 256**2
"""Fixations per pixel that a scan makes at most unless it is told otherwise."""


def default_budget(shape: tuple[int, int]) -> int:
    """400 fixations for an image of 256×256 pixels, in proportion to its area."""
    return math.ceil(shape[0] * shape[1] * BUDGET_PER_PIXEL)


def scanning(
    model: Model,
    image: torch.Tensor,
    *,
    policy: Policy,
    fusion: Fusion = FUSIONS["precision"],
    budget: int | None = None,
    batch_size: int = 32,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[Looked, None, Scan]:
    """Scan an image (C, H, W) on the device it lies on; see `retina.scan`."""
    config = model.config
    assert isinstance(config, RetinaConfig)
    look = CropLook(
        inference_network(model, image.device),
        image,
        grid=config.grid,
        margin=policy.margin(config.grid),
    )
    shape = (image.shape[1], image.shape[2])

    def seeing(corners: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return look(corners)

    return (
        yield from scan(
            seeing,
            shape,
            grid=config.grid,
            classes=config.classes,
            policy=policy,
            fusion=fusion,
            budget=budget,
            batch_size=batch_size,
            device=image.device,
            cancelled=cancelled,
        )
    )


def inference_network(
    model: Model, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Put the network in the form and memory layout it is fastest in.

    Parameters
    ----------
    model : Model
        A retina model; it is left as it is.
    device : torch.device
        Where the crops will be.

    Returns
    -------
    callable
        Crops (B, C, d, d) → logits (B, N, outputs).
    """
    network = copy.deepcopy(model.network).eval().to(device)
    assert isinstance(network, RetinaVGG)
    network = network.folded().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(crops: torch.Tensor) -> torch.Tensor:
        crops = crops.contiguous(memory_format=torch.channels_last)
        return network(crops)  # type: ignore[no-any-return]

    return forward


def scan_tensor(
    model: Model, image: torch.Tensor, *, policy: Policy, budget: int | None = None
) -> Scan:
    """Scan to the end and return the result; the default budget applies."""
    if budget is None:
        budget = default_budget((image.shape[1], image.shape[2]))
    run = scanning(model, image, policy=policy, budget=budget, batch_size=64)
    try:
        while True:
            next(run)
    except StopIteration as end:
        result: Scan = end.value
        return result
