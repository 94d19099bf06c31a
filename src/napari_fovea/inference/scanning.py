"""Scans of a normalised image: by crops, or by features that all looks share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from napari_fovea.device import as_backend
from napari_fovea.inference.runner import Runner
from napari_fovea.inference.trunk import Trunk
from napari_fovea.networks import SharedRetina
from napari_fovea.retina import FUSIONS, CropLook, Fusion, Look, scan

if TYPE_CHECKING:
    from collections.abc import Generator

    from napari_fovea.device import Backend
    from napari_fovea.models import Model
    from napari_fovea.networks import RetinaConfig
    from napari_fovea.retina import Looked, Policy, Scan

BUDGET_PER_PIXEL = 400 / 256**2
"""Fixations per pixel that a scan makes at most unless it is told otherwise."""

Network = Callable[[torch.Tensor], torch.Tensor] | Trunk
"""Crops (B, C, d, d) → logits (B, N, outputs); or what makes features to look at."""


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
    look: Look
    if isinstance(network, Trunk):
        look = network.look(image, margin=margin, cancelled=cancelled)
    else:
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


def inference_network(model: Model, device: str | torch.device | Backend) -> Network:
    """Put the network in the form and memory layout it is fastest in.

    Parameters
    ----------
    model : Model
        A retina model; it is left as it is.
    device : str, torch.device or Backend
        Where to look, and how; crops may lie elsewhere.

    Returns
    -------
    callable or Trunk
        Crops (B, C, d, d) → logits (B, N, outputs); or what makes features to look at.
    """
    return network_of(model, runner_of(model, device))


def network_of(model: Model, runner: Runner) -> Network:
    """Choose what a scan is given to look with."""
    if isinstance(model.network, SharedRetina):
        return Trunk(runner)
    return runner.in_parts()


def runner_of(model: Model, device: str | torch.device | Backend) -> Runner:
    """Choose how the network of a retina model is run."""
    # Crops are small: on a CPU that is fast at 16 bits a batch of 32 took 37 ms in
    # them and 27 ms in 32. Where to look next depends on what was seen, so a walk
    # would not be the same either.
    backend = as_backend(device)
    if backend.precision == "auto":
        backend = replace(backend, precision="float32")
    return Runner(model, backend)


def gathered(
    run: Generator[Looked, None, Scan], *, seconds: float
) -> Generator[list[Looked], None, Scan]:
    """Join batches of a scan until some time has passed since the last ones.

    Parameters
    ----------
    run : generator
        A scan.
    seconds : float
        Least time between two yields; 0 yields every batch.

    Yields
    ------
    list of Looked

    Returns
    -------
    Scan
    """
    untold: list[Looked] = []
    told = time.perf_counter()
    while True:
        try:
            untold.append(next(run))
        except StopIteration as end:
            if untold:
                yield untold
            scanned: Scan = end.value
            return scanned
        if time.perf_counter() - told >= seconds:
            yield untold
            untold, told = [], time.perf_counter()
