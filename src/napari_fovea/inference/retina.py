"""Scanning a normalised image with a retina network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
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
    from collections.abc import Generator

    from napari_fovea.models import Model

BUDGET_PER_PIXEL = 400 / 256**2
"""Fixations per pixel that a scan makes at most unless it is told otherwise."""

Network = Callable[[torch.Tensor], torch.Tensor]
"""Crops (B, C, d, d) → logits (B, N, outputs)."""


def default_budget(shape: tuple[int, int], *, d: int) -> int:
    """Most fixations for an image, unless the user says otherwise.

    400 for 256×256 pixels, in proportion to the area, and never fewer than
    subareas of side ``d`` are needed to cover the image.
    """
    tiles = math.prod(math.ceil(n / d) for n in shape)
    return max(tiles, math.floor(math.prod(shape) * BUDGET_PER_PIXEL))


def scanning(
    network: Network,
    image: torch.Tensor,
    *,
    config: RetinaConfig,
    policy: Policy,
    fusion: Fusion = FUSIONS["precision"],
    budget: int | None = None,
    batch_size: int = 32,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[Looked, None, Scan]:
    """Scan an image (C, H, W) on the device it lies on; see `retina.scan`.

    Parameters
    ----------
    network : callable
        From `inference_network`.
    image : Tensor of float32, shape (C, H, W)
        Normalised.
    config : RetinaConfig
        Settings of the network.
    policy, fusion, budget, batch_size, cancelled
        See `retina.scan`.

    Yields
    ------
    Looked

    Returns
    -------
    Scan
    """
    margin = policy.margin(config.grid)
    look = CropLook(network, image, grid=config.grid, margin=margin)

    def seeing(corners: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return look(corners)

    return (
        yield from scan(
            seeing,
            (image.shape[1], image.shape[2]),
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


def inference_network(model: Model, device: torch.device) -> Network:
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
    fast = network.folded().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(crops: torch.Tensor) -> torch.Tensor:
        crops = crops.contiguous(memory_format=torch.channels_last)
        return fast(crops)  # type: ignore[no-any-return]

    return forward


def scan_tensor(
    model: Model, image: torch.Tensor, *, policy: Policy, budget: int | None = None
) -> Scan:
    """Scan to the end and return the result; the default budget applies."""
    config = model.config
    assert isinstance(config, RetinaConfig)
    if budget is None:
        budget = default_budget((image.shape[1], image.shape[2]), d=config.d)
    run = scanning(
        inference_network(model, image.device),
        image,
        config=config,
        policy=policy,
        budget=budget,
        batch_size=64,
    )
    try:
        while True:
            next(run)
    except StopIteration as end:
        result: Scan = end.value
        return result
