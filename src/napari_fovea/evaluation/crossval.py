"""Cross-validation: train on some of the images, evaluate on the others."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_fovea.device import pick
from napari_fovea.errors import TrainingError
from napari_fovea.evaluation.images import (
    Evaluation,
    ImageScored,
    evaluate,
    mean_and_std,
)
from napari_fovea.files import read_image, read_labels, replacing
from napari_fovea.inference.choosing import reader_for
from napari_fovea.training.labelling import Labelling
from napari_fovea.training.processes import check_precision
from napari_fovea.training.run import (
    check_seed,
    find_recipe,
    fresh_model,
    train_on,
)
from napari_fovea.training.samples import (
    check_samples,
    fingerprint,
    make_sample,
    pair_files,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from napari_fovea.training.fit import EpochEnd
    from napari_fovea.training.recipe import Recipe


_READING = ("policy", "fusion", "budget", "tiling", "batch_size")


@dataclass(frozen=True, slots=True)
class FoldEvent:
    """Something happened in a fold.

    Attributes
    ----------
    fold, folds : int
        Which, counted from 1, and how many.
    event : EpochEnd or ImageScored
        What.
    seconds_left : float
        Estimate of what the remaining folds take, this one included, from what
        the present one and those before it took.
    """

    fold: int
    folds: int
    event: EpochEnd | ImageScored
    seconds_left: float


@dataclass(frozen=True)
class CrossValidation:
    """Scores of all folds.

    Attributes
    ----------
    folds : tuple of Evaluation
        One by one.
    """

    folds: tuple[Evaluation, ...]

    def summary(self) -> dict[str, Any]:
        """Mean and standard deviation over folds of each fold's mean."""
        means = [fold.summary() for fold in self.folds]
        if not means:
            return {"folds": 0}
        names = [n for n in means[0] if n != "images"]
        return {"folds": len(means)} | {
            n: mean_and_std([m[n]["mean"] for m in means]) for n in names
        }

    def as_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "summary": self.summary(),
            "folds": [fold.as_json() for fold in self.folds],
        }


def split(n: int, folds: int, *, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Divide images at random into folds of nearly equal size.

    Raises
    ------
    TrainingError
        If there are fewer images than folds, or fewer than two folds.
    """
    if not 2 <= folds <= n:
        raise TrainingError(
            f"{n} images cannot be divided into {folds} folds; expected 2 to {n} "
            "folds: choose fewer, or add images."
        )
    order = np.random.default_rng(seed).permutation(n)
    return tuple(tuple(sorted(part.tolist())) for part in np.array_split(order, folds))


def cross_validate(
    images: Path,
    labels: Path,
    *,
    recipe: str | Recipe,
    folds: int = 5,
    few: bool = False,
    config: str | None = None,
    labelling: Labelling | None = None,
    channels: int = 3,
    changes: dict[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "float32",
    output: Path | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> Generator[FoldEvent, None, CrossValidation]:
    """Train and evaluate by k-fold cross-validation, as the first paper does.

    Parameters
    ----------
    images, labels : Path
        Folders whose files pair up by stem.
    recipe : str or Recipe
        How to train.
    folds : int
        How many.
    few : bool
        Train on one fold and evaluate on all others, to see what a few images
        teach; else train on all others and evaluate on one.
    config, labelling, channels, changes, device, precision
        See `training.run.train`. There is no validation: the last epoch counts.
    seed : int
        Of the folds and of the training.
    output : Path, optional
        Folder in which each fold's scores and model are kept; folds that are
        there already are not done again.
    cancelled : callable
        Asked all the time; where it says yes, only whole folds are told.
    **settings
        See `inference.segment`.

    Yields
    ------
    FoldEvent

    Returns
    -------
    CrossValidation

    Raises
    ------
    TrainingError
        If there are too few images, or something else does not fit; before any
        training starts.
    """
    pairs = pair_files(images, labels)
    check_seed(seed)
    parts = split(len(pairs), folds, seed=seed)
    plan = find_recipe(recipe, changes or {})
    if plan.choice == "ensemble":
        raise TrainingError(
            "A recipe that keeps the best checkpoints needs validation images, which "
            "a cross-validation has not; expected one that keeps the last: choose "
            "another recipe."
        )
    check_precision(precision)
    labelling = labelling or Labelling()
    fresh = fresh_model(
        plan, config=config, labelling=labelling, channels=channels, seed=seed
    )
    samples = [
        make_sample(
            read_image(image),
            read_labels(truth),
            name=image.name,
            channels=channels,
            outputs=len(fresh.outputs),
            depths=fresh.depths,
            from_instances=labelling.from_instances,
            ignore=labelling.ignore,
        )
        for image, truth in pairs
    ]
    for part in parts:
        shown = part if few else set(range(len(pairs))) - set(part)
        check_samples([samples[i] for i in sorted(shown)], fresh)
    how = {k: v for k, v in settings.items() if k in _READING}
    height, width = samples[0].classes.shape
    reader_for(fresh, pick(device), (height, width), **how)
    told: list[Evaluation] = []
    run = {
        "recipe": repr(plan),
        "config": repr(fresh.config),
        "labelling": repr(labelling),
        "folds": folds,
        "few": few,
        "seed": seed,
        "precision": precision,
        "settings": repr(settings),
        "data": fingerprint(samples),
    }
    clock = _Clock(folds)
    for number, part in enumerate(parts, start=1):
        kept = output / f"fold{number}.json" if output is not None else None
        if kept is not None and kept.exists():
            told.append(_kept_fold(kept, run))
            continue
        rest = [i for i in range(len(pairs)) if i not in part]
        train, test = (list(part), rest) if few else (rest, list(part))
        clock.begin(number)
        model = yield from _in_fold(
            clock,
            train_on(
                fresh,
                [samples[i] for i in train],
                [],
                recipe=plan,
                seed=seed,
                device=device,
                precision=precision,
                cancelled=cancelled,
            ),
        )
        if cancelled():
            break
        evaluation = yield from _in_fold(
            clock,
            evaluate(
                replace(model, name=f"{plan.network}-fold{number}"),
                [pairs[i] for i in test],
                labelling=labelling,
                device=device,
                cancelled=cancelled,
                **settings,
            ),
        )
        if cancelled():
            break
        told.append(evaluation)
        clock.end()
        if kept is not None:
            model.save(kept.with_suffix(".safetensors"), half=True)
            with replacing(kept) as temporary:
                temporary.write_text(json.dumps(evaluation.as_json() | {"run": run}))
    return CrossValidation(tuple(told))


class _Clock:
    """Tells how long the remaining folds take."""

    def __init__(self, folds: int) -> None:
        self.folds = folds
        self.fold = 0
        self.took: list[float] = []
        self.started = 0.0

    def begin(self, fold: int) -> None:
        self.fold, self.started = fold, time.perf_counter()

    def end(self) -> None:
        self.took.append(time.perf_counter() - self.started)

    def left(self, event: EpochEnd | ImageScored) -> float:
        spent = time.perf_counter() - self.started
        past = sum(self.took) / len(self.took) if self.took else 0.0
        if isinstance(event, ImageScored):
            this = event.seconds * (event.total - event.done)
        else:
            # An epoch knows nothing of the evaluation that follows.
            this = max(event.seconds_left, past - spent)
        return this + (self.folds - self.fold) * (past or spent + this)


def _in_fold(
    clock: _Clock, run: Generator[Any, None, Any]
) -> Generator[FoldEvent, None, Any]:
    try:
        while True:
            event = next(run)
            yield FoldEvent(clock.fold, clock.folds, event, clock.left(event))
    except StopIteration as end:
        return end.value


def _kept_fold(path: Path, run: dict[str, Any]) -> Evaluation:
    try:
        kept = json.loads(path.read_text())
        same = kept["run"] == run
        rows = kept["images"]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{path} holds no fold of a cross-validation; expected one that this "
            "command wrote: move it away to do the fold again."
        ) from error
    if not same:
        raise TrainingError(
            f"{path} belongs to a cross-validation with other settings or images: "
            "choose another output folder, or move it away."
        )
    told = ("name", "group", "seconds", "pixels")
    return Evaluation(
        tuple(
            ImageScored(
                row["name"],
                {
                    k: math.nan if v is None else v
                    for k, v in row.items()
                    if k not in told
                },
                row["seconds"],
                row.get("pixels", 0),
                row["group"],
                i,
                len(rows),
            )
            for i, row in enumerate(rows, start=1)
        ),
        kept["provenance"],
    )
