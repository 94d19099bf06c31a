"""Scanning a normalised image with a retina network."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from napari_fovea.errors import ModelError
from napari_fovea.inference.reading import Choice, Seen, Step
from napari_fovea.inference.scanning import (
    default_budget,
    gathered,
    network_of,
    runner_of,
    scanning,
)
from napari_fovea.networks import RetinaConfig, SharedRetina
from napari_fovea.retina import (
    FUSIONS,
    POLICIES,
    FocusPath,
    Fusion,
    Looked,
    Policy,
    Raster,
    RetinaGrid,
    Scan,
    Seek,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from numpy.typing import NDArray

    from napari_fovea.device import Backend
    from napari_fovea.models import Model

_BATCH, _SHARED_BATCH = 32, 256

_SPACING = 0.05
"""Seconds between two tellings of where a scan on an accelerator has looked."""


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
    batch_size : int, optional
        Most subareas looked at together; 32 by default, and more where they share
        what they look at.

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
        batch_size: int | None = None,
    ) -> None:
        config = model.config
        assert isinstance(config, RetinaConfig)
        self.config = config
        self.policy = _policy(policy or model.scan.get("policy", "seek"))
        self.fusion = _fusion(fusion, self.policy)
        if budget is None and not isinstance(self.policy, Raster):
            budget = default_budget(shape, d=config.d)
        self.budget = budget
        shared = isinstance(model.network, SharedRetina)
        self.batch_size = batch_size or (_SHARED_BATCH if shared else _BATCH)
        self.runner = runner_of(model, device)
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

    def choose(self, image: torch.Tensor) -> Choice:
        """Choose how to read planes like one; see `Reader.choose`."""
        return Choice(self.runner.precision)

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
            network_of(self._model, self.runner),
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
