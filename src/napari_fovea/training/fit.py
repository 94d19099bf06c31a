"""The training loop: a generator of one event per epoch, resumable to the bit."""

from __future__ import annotations

import copy
import itertools
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from napari_fovea.device import exact_training
from napari_fovea.errors import TrainingError
from napari_fovea.networks.ensemble import gather
from napari_fovea.training.pace import Clock, rate_at
from napari_fovea.training.processes import mean, single
from napari_fovea.training.resuming import (
    Pieces,
    State,
    choose,
    digest,
    keep,
    resume,
)
from napari_fovea.training.statistics import PartStatistics, share
from napari_fovea.training.task import Parts

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from lightning_fabric import Fabric

    from napari_fovea.models import Model
    from napari_fovea.training.recipe import Recipe
    from napari_fovea.training.task import Task


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
    learning_rate : float
        The rate of its last step.
    seconds_left : float
        Estimate of what the remaining epochs take, from those of this run.
    """

    epoch: int
    epochs: int
    loss: float
    score: float | None
    best: float | None
    seconds: float
    learning_rate: float
    seconds_left: float


@dataclass(frozen=True)
class Trained:
    """Result of a training run.

    Attributes
    ----------
    model : Model
        The one the recipe chooses: best, last, or an ensemble of the best.
    score : float or None
        Its validation score; of an ensemble that of the best member.
    """

    model: Model
    score: float | None


class LossNotFinite(TrainingError):
    """The loss became NaN or infinite.

    Attributes
    ----------
    trained : Trained
        The best there was before, or the model that training began with.
    epochs : int
        Epochs that went well.
    """

    def __init__(self, message: str, trained: Trained, epochs: int) -> None:
        super().__init__(message)
        self.trained = trained
        self.epochs = epochs


def fit(
    model: Model,
    task: Task[Any],
    recipe: Recipe,
    *,
    device: str = "auto",
    seed: int = 0,
    precision: str = "float32",
    accumulate: int = 1,
    fabric: Fabric | None = None,
    checkpoint: Path | None = None,
    seconds: float | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[EpochEnd, None, Trained]:
    """Train a model.

    Parameters
    ----------
    model : Model
        Start from these weights; the model that is passed in is left alone.
    task : Task
        Draws batches, computes the loss, scores.
    recipe : Recipe
        Settings.
    device : str
        ``"auto"`` or a torch device.
    seed : int
        For the order of views and dropout.
    precision : str
        A name of `processes.PRECISIONS`.
    accumulate : int
        Parts into which a batch is divided to save memory.
    fabric : lightning_fabric.Fabric, optional
        Launched already, for several processes or machines; see `processes.launch`. It
        takes the place of device and precision.
    checkpoint : Path, optional
        File that is replaced after every epoch. If it is there, training goes
        on from it, to the same weights as without the break. It is taken away if
        the loss becomes infinite, since going on from it would end there again.
        All processes must see it.
    seconds : float, optional
        End when this time is over, if the epochs are not: the learning rate falls
        with it. What is learned then depends on how fast the machine is.
    cancelled : callable
        Asked after every step; where it says yes, training ends with the best
        model so far.

    Yields
    ------
    EpochEnd
        After each epoch.

    Returns
    -------
    Trained
        The model that the recipe chooses.

    Raises
    ------
    LossNotFinite
        If the loss is no longer finite; it carries the last good model.
    TrainingError
        If the checkpoint belongs to another run, or settings cannot be used.
    """
    fabric = fabric or single(device, precision)
    where = fabric.device
    parts = Parts(accumulate, fabric.world_size, fabric.global_rank)
    parts.size(recipe.batch_size)
    network = copy.deepcopy(model.network).to(where).requires_grad_(True)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network).requires_grad_(False)
    steps = task.steps
    optimiser = _optimiser(recipe, network)
    plateau = ReduceLROnPlateau(
        optimiser,
        mode="max" if task.validation else "min",
        factor=recipe.plateau_factor,
        patience=max(0, recipe.patience - 1),  # torch waits for one epoch more
        threshold=1e-3,
        threshold_mode="abs",
    )
    state = State()
    run = {
        "recipe": repr(recipe),
        "seed": seed,
        "config": repr(model.config),
        "precision": str(fabric._precision.precision),
        "parts": parts.count,
        "data": task.fingerprint(),
        "start": digest(model.network),
    }
    pieces = Pieces(network, average, optimiser, plateau, task, fabric)
    if checkpoint is not None and checkpoint.exists():
        state = resume(checkpoint, run, pieces)
    wrapped, stepping = fabric.setup(network, optimiser)
    statistics = PartStatistics(network, len(parts.mine))

    def trained() -> Trained:
        return _result(model, recipe, state)

    def check(what: str, value: float) -> None:
        if math.isfinite(value):
            return
        if checkpoint is not None and fabric.is_global_zero:
            checkpoint.unlink(missing_ok=True)
        good = "The last good weights are kept." if state.epoch else "Nothing is kept."
        raise LossNotFinite(
            f"The {what} became {value} in epoch {state.epoch + 1}; expected a finite "
            f"number: start anew with a lower learning rate. {good}",
            trained(),
            state.epoch,
        )

    times: list[float] = []
    clock = Clock(seconds)
    for epoch in range(state.epoch, recipe.epochs):
        started = time.perf_counter()
        with exact_training():
            _prepare(fabric, task, replace(model, network=average), epoch)
            task.begin(network)
            total, done = 0.0, 0
            for i, batches in enumerate(task.batches(epoch, parts)):
                if recipe.schedule != "plateau":
                    step, last_step = epoch * steps + i, recipe.epochs * steps
                    rate = rate_at(recipe, *clock.place(step, last_step))
                    for group in optimiser.param_groups:
                        group["lr"] = rate
                value = 0.0
                statistics.begin_step()
                for part, batch in zip(parts.mine, batches, strict=True):
                    # Dropout and samplers go by the part, as what it shows does.
                    torch.manual_seed(_seed(seed, epoch, i, part))
                    last = part == parts.mine[-1]
                    statistics.begin_part()
                    with fabric.no_backward_sync(wrapped, enabled=not last):
                        loss = task.loss(wrapped, batch, where) / len(batches)
                        fabric.backward(loss)
                    value += float(loss.detach())
                    statistics.end_part()
                statistics.end_step()
                value = mean(fabric, value)
                check("loss", value)
                if recipe.clip is not None:
                    fabric.clip_gradients(
                        wrapped,
                        stepping,
                        max_norm=recipe.clip,
                        error_if_nonfinite=False,
                    )
                stepping.step()
                optimiser.zero_grad(set_to_none=True)
                _follow(average, network, recipe.averaging, epoch * steps + i)
                total += value
                done += 1
                if cancelled():
                    return trained()
                if clock.over:
                    break
            share(fabric, network, average)
            # What is kept from here on must be good.
            check("weights", _zero(average))
            ends = epoch + 1 == recipe.epochs or clock.over
            score = None
            if ends or (epoch + 1) % recipe.validate_every == 0:
                score = _score(fabric, task, replace(model, network=average))
            state.epoch = epoch + 1
            choose(state, recipe, score, average)
            rate = float(optimiser.param_groups[0]["lr"])
            if recipe.schedule == "plateau" and (
                score is not None or not task.validation
            ):
                plateau.step(total / done if score is None else score)
            for group in optimiser.param_groups:
                group["lr"] *= 1 - recipe.rate_decay
            if checkpoint is not None:
                if fabric.is_global_zero:
                    keep(checkpoint, run, state, pieces)
                fabric.barrier()
        times.append(time.perf_counter() - started)
        yield EpochEnd(
            epoch + 1,
            recipe.epochs,
            total / done,
            score,
            state.best,
            times[-1],
            rate,
            clock.left(sum(times) / len(times) * (recipe.epochs - epoch - 1)),
        )
        if clock.over:
            break
    return trained()


def _optimiser(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "nadam": torch.optim.NAdam,
        "sgd": partial(torch.optim.SGD, momentum=0.9),
    }
    return kinds[recipe.optimiser](
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _zero(network: nn.Module) -> float:
    """Return 0, or NaN if one of the weights is not finite."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return sum(float((0 * t.detach()).sum()) for t in tensors)


def _prepare(fabric: Fabric, task: Task[Any], model: Model, epoch: int) -> None:
    """Look at the model in the first process, and tell the others what was seen."""
    if fabric.is_global_zero:
        with fabric.autocast():
            task.prepare(model, epoch)
    if fabric.world_size > 1:
        task.restore(fabric.broadcast(task.state()))


def _score(fabric: Fabric, task: Task[Any], model: Model) -> float | None:
    """Score in the first process, so that all go on from the same number."""
    score = None
    if fabric.is_global_zero:
        with fabric.autocast():
            score = task.score(model)
    if fabric.world_size > 1:
        score = fabric.broadcast(score)
    return score


def _result(model: Model, recipe: Recipe, state: State) -> Trained:
    members = []
    for _, weights in state.kept or [(0.0, model.network.state_dict())]:
        network = copy.deepcopy(model.network).cpu().eval().requires_grad_(False)
        network.load_state_dict(weights)
        members.append(network)
    network = gather(members) if recipe.choice == "ensemble" else members[0]
    scores = [score for score, _ in state.kept if score > -math.inf]
    return Trained(replace(model, network=network), max(scores, default=None))


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
