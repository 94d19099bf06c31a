"""Scanning a normalised image with a retina network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from napari_fovea.device import as_backend
from napari_fovea.errors import ModelError
from napari_fovea.inference.reading import Seen, Step
from napari_fovea.inference.runner import Runner
from napari_fovea.networks import RetinaConfig
from napari_fovea.retina import (
    FUSIONS,
    POLICIES,
    CropLook,
    FocusPath,
    Fusion,
    Looked,
    Policy,
    Raster,
    RetinaGrid,
    Scan,
    Seek,
    scan,
)

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray

    from napari_fovea.device import Backend
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
    callable
        Crops (B, C, d, d) → logits (B, N, outputs).
    """
    return _runner(model, device).in_parts()


def _runner(model: Model, device: str | torch.device | Backend) -> Runner:
    # Crops are small: on a CPU that is fast at 16 bits a batch of 32 took 37 ms in
    # them and 27 ms in 32. Where to look next depends on what was seen, so a walk
    # would not be the same either.
    backend = as_backend(device)
    if backend.precision == "auto":
        backend = replace(backend, precision="float32")
    return Runner(model, backend)


class RetinaReader:
    """Reads planes by moving the retina over them.

    Parameters
    ----------
    model : Model
        A retina model.
    device : str, torch.device or Backend
        Where the network runs, and how.
    shape : tuple of int
        Their height and width.
    policy : str or Policy, optional
        By default the model's.
    fusion : str or Fusion, optional
        By default what suits the policy.
    budget : int, optional
        Most fixations per plane; see `default_budget`.
    batch_size : int
        Most subareas looked at together.

    Raises
    ------
    ModelError
        If there is no such policy or fusion.
    """

    def __init__(
        self,
        model: Model,
        device: str | torch.device | Backend,
        shape: tuple[int, int],
        *,
        policy: str | Policy | None = None,
        fusion: str | Fusion | None = None,
        budget: int | None = None,
        batch_size: int = 32,
    ) -> None:
        config = model.config
        assert isinstance(config, RetinaConfig)
        self.config = config
        self.policy = _policy(policy or model.scan.get("policy", "seek"))
        self.fusion = _fusion(fusion, self.policy)
        if budget is None and not isinstance(self.policy, Raster):
            budget = default_budget(shape, d=config.d)
        self.budget = budget
        self.batch_size = batch_size
        self.runner = _runner(model, device)
        self._model = model

    @property
    def home(self) -> torch.device:
        """Where planes lie best: crops are cut there."""
        return self.runner.device

    @property
    def settings(self) -> dict[str, Any]:
        """What it was told."""
        return {
            "policy": _name(POLICIES, self.policy),
            "fusion": _name(FUSIONS, self.fusion),
            "budget": self.budget,
            "batch_size": self.batch_size,
        }

    def read(
        self,
        image: torch.Tensor,
        *,
        scale: tuple[float, float] = (1.0, 1.0),
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generator[Step, None, Seen]:
        """Read a plane; see `Reader.read`."""
        grid = self.config.grid
        run = scanning(
            self.runner.in_parts(),
            image,
            config=self.config,
            policy=self.policy,
            fusion=self.fusion,
            budget=self.budget,
            batch_size=self.batch_size,
            cancelled=cancelled,
        )
        try:
            while True:
                looked = next(run)
                part = FocusPath(
                    corners=looked.corners.cpu().numpy(),
                    entropies=looked.entropies.float().cpu().numpy(),
                    steps=looked.steps.cpu().numpy(),
                    grid=grid,
                    scale=scale,
                    planes=np.zeros(len(looked.corners), dtype=np.int64),
                )
                yield Step(
                    looked.done / looked.expected,
                    partial(_read_out, self.fusion, looked, grid),
                    part,
                    looked.done,
                )
        except StopIteration as end:
            scanned: Scan = end.value
        path = replace(
            scanned.path,
            scale=scale,
            pmfs=_of_classes(self._model, scanned.path.pmfs),
            classes=self._model.classes,
        )
        return Seen(scanned.probabilities, scanned.overlap, path)


def _of_classes(
    model: Model, pmfs: NDArray[np.float16] | None
) -> NDArray[np.float16] | None:
    """From pmfs (n, N, outputs) to pmfs of classes (n, N, K)."""
    if pmfs is None:
        return None
    outputs = torch.from_numpy(pmfs.copy()).float().movedim(-1, 0)
    classes = model.class_probabilities(outputs).movedim(0, -1)
    return classes.half().contiguous().numpy()


def _read_out(
    fusion: Fusion, looked: Looked, grid: RetinaGrid
) -> tuple[torch.Tensor, torch.Tensor]:
    return fusion.read_out(looked.votes, grid), looked.overlap


def _policy(policy: Any) -> Policy:
    if isinstance(policy, Raster | Seek):
        return policy
    if policy not in POLICIES:
        raise ModelError(
            f"There is no policy {policy!r}; expected {' or '.join(POLICIES)}."
        )
    return POLICIES[policy]


def _fusion(fusion: str | Fusion | None, policy: Policy) -> Fusion:
    if fusion is None:
        fusion = "mean" if isinstance(policy, Raster) else "precision"
    if not isinstance(fusion, str):
        return fusion
    if fusion not in FUSIONS:
        raise ModelError(
            f"There is no fusion {fusion!r}; expected {' or '.join(FUSIONS)}."
        )
    return FUSIONS[fusion]


def _name(known: dict[str, Any], value: Any) -> str:
    return next((k for k, v in known.items() if v == value), repr(value))
