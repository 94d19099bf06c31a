"""What a training run keeps after every epoch, and how it goes on from there."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from napari_fovea.errors import TrainingError
from napari_fovea.files import replacing

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_fabric import Fabric
    from torch import nn
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    from napari_fovea.training.recipe import Recipe
    from napari_fovea.training.task import Task


@dataclass
class State:
    """What changes from epoch to epoch, apart from weights and optimiser."""

    epoch: int = 0
    best: float | None = None
    # Score and weights of the checkpoints that will make the model.
    kept: list[tuple[float, dict[str, torch.Tensor]]] = field(default_factory=list)


@dataclass(frozen=True)
class Pieces:
    """Everything with a state of its own."""

    network: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    plateau: ReduceLROnPlateau
    task: Task[Any]
    fabric: Fabric


def choose(
    state: State, recipe: Recipe, score: float | None, average: nn.Module
) -> None:
    """Keep the weights if they are among those that will make the model."""
    if recipe.choice == "last":
        state.kept = []
    elif score is None and state.best is not None:
        return  # this epoch was not scored, others are
    elif score is None or state.best is None:
        state.kept = []  # nothing before was scored
    if score is not None and (state.best is None or score > state.best):
        state.best = score
    members = recipe.members if recipe.choice == "ensemble" else 1
    rank = -math.inf if score is None else score
    if len(state.kept) == members and rank < state.kept[-1][0]:
        return
    weights = {k: v.detach().cpu().clone() for k, v in average.state_dict().items()}
    # Of equal scores the later one counts as better.
    state.kept.insert(0, (rank, weights))
    state.kept.sort(key=lambda pair: -pair[0])
    del state.kept[members:]


def digest(network: nn.Module) -> str:
    """Tell one set of weights from another."""
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def keep(path: Path, run: dict[str, Any], state: State, pieces: Pieces) -> None:
    """Replace the checkpoint of a run."""
    everything = {
        "run": run,
        "state": {"epoch": state.epoch, "best": state.best, "kept": state.kept},
        "network": pieces.network.state_dict(),
        "average": pieces.average.state_dict(),
        "optimiser": pieces.optimiser.state_dict(),
        "plateau": pieces.plateau.state_dict(),
        "scaler": pieces.fabric._precision.state_dict(),
        "task": pieces.task.state(),
    }
    with replacing(path) as temporary:
        torch.save(everything, temporary)


def resume(path: Path, run: dict[str, Any], pieces: Pieces) -> State:
    """Take up a run from its checkpoint.

    Raises
    ------
    TrainingError
        If the file is no checkpoint, or one of another run.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        same = saved["run"] == run
    except Exception as error:  # torch raises many kinds for a damaged file
        raise TrainingError(
            f"{path} is no training checkpoint of napari-fovea; expected one that "
            "this command wrote: move it away to start anew."
        ) from error
    if not same:
        raise TrainingError(
            f"{path} belongs to a run with other settings; expected the same recipe, "
            "network, data and seed: move it away to start anew."
        )
    pieces.network.load_state_dict(saved["network"])
    pieces.average.load_state_dict(saved["average"])
    pieces.optimiser.load_state_dict(saved["optimiser"])
    pieces.plateau.load_state_dict(saved["plateau"])
    pieces.fabric._precision.load_state_dict(saved["scaler"])
    pieces.task.restore(saved["task"])
    return State(**saved["state"])
