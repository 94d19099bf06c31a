"""Scanning a normalised image with a retina network."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from napari_fovea.errors import ModelError
from napari_fovea.inference.reading import Seen, Step
from napari_fovea.inference.trunk import TrunkLook
from napari_fovea.networks import AdaptedRetina, RetinaConfig, RetinaVGG, SharedRetina
from napari_fovea.retina import (
    FUSIONS,
    POLICIES,
    CropLook,
    FocusPath,
    Fusion,
    Look,
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

    from napari_fovea.models import Model

_SPACING = 0.05
"""Seconds between two tellings of where a scan on an accelerator has looked."""

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
    look: Look
    if isinstance(network, SharedRetina):
        look = TrunkLook(network, image, margin=margin)
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
    assert isinstance(network, RetinaVGG | SharedRetina | AdaptedRetina)
    fast = network.folded().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    if isinstance(fast, SharedRetina):
        return fast

    def forward(crops: torch.Tensor) -> torch.Tensor:
        crops = crops.contiguous(memory_format=torch.channels_last)
        return fast(crops)  # type: ignore[no-any-return]

    return forward


class RetinaReader:
    """Reads planes by moving the retina over them.

    Parameters
    ----------
    model : Model
        A retina model.
    device : torch.device
        Where the planes will be.
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
        device: torch.device,
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
        self._model, self._device = model, device
        self._network: Network | None = None

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
        if self._network is None:
            self._network = inference_network(self._model, self._device)
        grid = self.config.grid
        run = scanning(
            self._network,
            image,
            config=self.config,
            policy=self.policy,
            fusion=self.fusion,
            budget=self.budget,
            batch_size=self.batch_size,
            cancelled=cancelled,
        )
        # An accelerator would wait for every copy: it is asked now and then.
        spacing = 0.0 if image.device.type == "cpu" else _SPACING
        stretches = gathered(run, seconds=spacing)
        try:
            while True:
                stretch = next(stretches)
                looked = stretch[-1]
                yield Step(
                    looked.done / looked.expected,
                    partial(_read_out, self.fusion, looked, grid),
                    _part(stretch, grid, scale),
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


def _part(
    stretch: list[Looked], grid: RetinaGrid, scale: tuple[float, float]
) -> FocusPath:
    """Make a path of some fixations alone."""
    corners = torch.cat([x.corners for x in stretch]).cpu().numpy()
    return FocusPath(
        corners=corners,
        entropies=torch.cat([x.entropies.float() for x in stretch]).cpu().numpy(),
        steps=torch.cat([x.steps for x in stretch]).cpu().numpy(),
        grid=grid,
        scale=scale,
        planes=np.zeros(len(corners), dtype=np.int64),
    )


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
