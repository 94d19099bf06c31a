"""The training loop: a generator of one event per epoch, resumable to the bit."""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from napari_fovea.device import exact_training, pick
from napari_fovea.errors import TrainingError
from napari_fovea.files import replacing

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from napari_fovea.models import Model
    from napari_fovea.training.recipes import Recipe
    from napari_fovea.training.retina import RetinaTask

_WARM_UP = 0.03  # share of the steps over which the learning rate rises


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """An epoch is over.

    Attributes
    ----------
    epoch, epochs : int
        Epochs done, and to do in all.
    loss : float
        Mean training loss of this epoch.
    score : float or None
        Validation score, if this epoch was scored.
    best : float or None
        Best score so far.
    seconds : float
        What this epoch took.
    """

    epoch: int
    epochs: int
    loss: float
    score: float | None
    best: float | None
    seconds: float


@dataclass(frozen=True)
class Trained:
    """Result of a training run.

    Attributes
    ----------
    model : Model
        The one that scored best, or the last if nothing was scored.
    score : float or None
        Its validation score.
    """

    model: Model
    score: float | None


def fit(
    model: Model,
    task: RetinaTask,
    recipe: Recipe,
    *,
    device: str = "auto",
    seed: int = 0,
    precision: str = "float32",
    checkpoint: Path | None = None,
) -> Generator[EpochEnd, None, Trained]:
    """Train a model.

    Parameters
    ----------
    model : Model
        Start from these weights; the model that is passed in is left alone.
    task : RetinaTask
        Draws batches, computes the loss, scores.
    recipe : Recipe
        Settings.
    device : str
        ``"auto"`` or a torch device.
    seed : int
        For the order of views and dropout.
    precision : str
        ``"float32"`` or ``"bfloat16"`` for autocast.
    checkpoint : Path, optional
        File that is replaced after every epoch. If it is there, training goes
        on from it, to the same weights as without the break.

    Yields
    ------
    EpochEnd
        After each epoch.

    Returns
    -------
    Trained
        The model that scored best, or the last if nothing was scored.

    Raises
    ------
    TrainingError
        If the loss is no longer finite, or the checkpoint belongs to another
        run.
    """
    where = pick(device)
    network = copy.deepcopy(model.network).to(where).requires_grad_(True)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network).requires_grad_(False)
    steps = recipe.steps
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    state: dict[str, Any] = {"epoch": 0, "best": None, "weights": None}
    run = {
        "recipe": repr(recipe),
        "seed": seed,
        "config": repr(model.config),
        "precision": precision,
        "data": task.fingerprint(),
        "start": _digest(model.network),
    }
    if checkpoint is not None and checkpoint.exists():
        state = _resume(checkpoint, run, network, average, optimiser, task)

    def autocast() -> torch.autocast:
        return torch.autocast(
            where.type, torch.bfloat16, enabled=precision == "bfloat16"
        )

    with exact_training():
        for epoch in range(state["epoch"], recipe.epochs):
            started = time.perf_counter()
            torch.manual_seed(seed * 1_000_003 + epoch)
            if recipe.uncertain and recipe.rescan:
                with autocast():
                    task.rescan(replace(model, network=average), epoch)
            network.train()
            total = 0.0
            for i, (crops, classes) in enumerate(task.batches(epoch)):
                rate = _rate(recipe, epoch * steps + i, recipe.epochs * steps)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                crops = crops.to(where, memory_format=torch.channels_last)
                with autocast():
                    logits = network(crops)
                loss = task.loss(logits, classes.to(where))
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise TrainingError(
                        f"The loss became {value} in epoch {epoch + 1}; the last good "
                        f"weights are in {checkpoint or 'the model you started from'}:"
                        " start anew with a lower learning rate."
                    )
                optimiser.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimiser.step()
                _follow(average, network, recipe.averaging, epoch * steps + i)
                total += value
            state["epoch"] = epoch + 1
            due = (epoch + 1) % recipe.validate_every == 0
            score = None
            if due or epoch + 1 == recipe.epochs:
                with autocast():
                    score = task.score(replace(model, network=average))
            best = state["best"]
            if score is None or best is None or score >= best:
                state["best"] = score if score is not None else best
                if score is not None or best is None:
                    state["weights"] = copy.deepcopy(average.state_dict())
            if checkpoint is not None:
                _keep(checkpoint, run, state, network, average, optimiser, task)
            yield EpochEnd(
                epoch + 1,
                recipe.epochs,
                total / steps,
                score,
                state["best"],
                time.perf_counter() - started,
            )
    average.load_state_dict(state["weights"] or average.state_dict())
    average.eval().cpu()
    return Trained(replace(model, network=average), state["best"])


def _digest(network: nn.Module) -> str:
    """Tell one set of weights from another."""
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _rate(recipe: Recipe, step: int, steps: int) -> float:
    if recipe.constant_rate:
        return recipe.learning_rate
    warm = max(1, int(_WARM_UP * steps))
    if step < warm:
        return recipe.learning_rate * (step + 1) / warm
    fraction = (step - warm) / max(1, steps - warm)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * fraction))


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move the running average of the weights; copy what is counted, not learned."""
    # A short memory at first, or the average would remember the initial weights.
    decay = min(decay, (1 + step) / (10 + step)) if decay else 0.0
    mine = itertools.chain(average.parameters(), average.buffers())
    theirs = itertools.chain(network.parameters(), network.buffers())
    for kept, new in zip(mine, theirs, strict=True):
        if kept.is_floating_point():
            kept.lerp_(new.detach(), 1 - decay)
        else:
            kept.copy_(new)


def _keep(
    path: Path,
    run: dict[str, Any],
    state: dict[str, Any],
    network: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    task: RetinaTask,
) -> None:
    everything = {
        "run": run,
        "state": state,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "task": task.state(),
    }
    with replacing(path) as temporary:
        torch.save(everything, temporary)


def _resume(
    path: Path,
    run: dict[str, Any],
    network: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    task: RetinaTask,
) -> dict[str, Any]:
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
            "network and seed: move it away to start anew."
        )
    network.load_state_dict(saved["network"])
    average.load_state_dict(saved["average"])
    optimiser.load_state_dict(saved["optimiser"])
    task.restore(saved["task"])
    state: dict[str, Any] = saved["state"]
    return state
