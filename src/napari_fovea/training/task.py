"""What a training run must know of the system it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from napari_fovea.errors import TrainingError
from napari_fovea.metrics import dice
from napari_fovea.training.samples import VOID, fingerprint
from napari_fovea.training.sizing import odds_of
from napari_fovea.training.views import Views

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from numpy.typing import NDArray
    from torch import nn

    from napari_fovea.models import Model
    from napari_fovea.training.recipe import Recipe
    from napari_fovea.training.samples import Sample

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Parts:
    """How a batch is divided among processes and one after the other.

    What a part holds depends on the number of parts alone, so that two processes
    learn what one does in two steps.

    Attributes
    ----------
    accumulate : int
        Parts that each process takes before a step of the optimiser.
    processes : int
        Processes in all.
    rank : int
        This process, counted from 0.
    """

    accumulate: int = 1
    processes: int = 1
    rank: int = 0

    @property
    def count(self) -> int:
        """Parts of a batch."""
        return self.accumulate * self.processes

    @property
    def mine(self) -> range:
        """Numbers of this process's parts."""
        return range(self.rank, self.count, self.processes)

    def size(self, batch_size: int) -> int:
        """Return how many views a part has.

        Raises
        ------
        TrainingError
            If a batch cannot be divided evenly.
        """
        if batch_size % self.count:
            raise TrainingError(
                f"Batches of {batch_size} cannot be divided into {self.count} equal "
                f"parts ({self.processes} processes × {self.accumulate} accumulated); "
                "expected a divisor: choose other numbers."
            )
        return batch_size // self.count


class Task(ABC, Generic[Batch]):
    """Draws batches, computes the loss, and scores.

    Parameters
    ----------
    model : Model
        What is trained.
    samples, validation : sequence of Sample
        Images to learn from, and to score on.
    recipe : Recipe
        Settings.
    seed : int
        What is drawn depends on this, the epoch and the step alone.

    Attributes
    ----------
    light : Augmentation
        How intensities vary in the epoch that is drawn.
    """

    def __init__(
        self,
        model: Model,
        samples: Sequence[Sample],
        validation: Sequence[Sample],
        *,
        recipe: Recipe,
        seed: int,
    ) -> None:
        self.model = model
        self.samples = samples
        every = max(1, -(-len(validation) // recipe.validate_images))
        self.validation = validation[::every]
        self.recipe = recipe
        self.seed = seed
        self.light = recipe.augmentation

    @property
    def odds(self) -> NDArray[np.floating] | None:
        """How often each image is shown; None for the root of its area."""
        balance = self.recipe.balance
        return odds_of(self.samples, balance) if balance else None

    @property
    def steps(self) -> int:
        """Batches per epoch, at least one."""
        views = self.recipe.views or len(self.samples)
        return max(1, views // self.recipe.batch_size)

    def batches(self, epoch: int, parts: Parts) -> Iterator[list[Batch]]:
        """Draw what this process learns from in one epoch.

        Yields
        ------
        list
            One step's parts, as `Parts` divides it.
        """
        size = parts.size(self.recipe.batch_size)
        self.light = self.recipe.light(epoch)
        for step in range(self.steps):
            yield [
                self.batch(np.random.default_rng([self.seed, epoch, step, part]), size)
                for part in parts.mine
            ]

    @abstractmethod
    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        """Draw views."""

    @abstractmethod
    def loss(
        self, network: nn.Module, batch: Batch, device: torch.device
    ) -> torch.Tensor:
        """Show a batch to the network and tell how wrong it is."""

    @abstractmethod
    def score(self, model: Model) -> float | None:
        """Tell how good the model is on the validation images; None without any."""

    def begin(self, network: nn.Module) -> None:
        """Make a network ready to learn, before an epoch."""
        network.train()

    def prepare(self, model: Model, epoch: int) -> None:
        """Look at the model as it stands, before an epoch."""

    def fingerprint(self) -> str:
        """Tell one set of training images and labels from another."""
        return fingerprint(self.samples, self.validation)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run must remember, as tensors by name."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up where `state` was taken."""


class CropTask(Task[Batch]):
    """Shows random crops of the images; see `Task`."""

    inside = True
    """Whether crops that are not resampled stay inside the image."""

    @cached_property
    def views(self) -> Views:
        """Where the crops come from."""
        return Views(
            self.samples,
            side=self.side,
            geometry=self.recipe.geometry,
            boundary=self.recipe.boundary,
            inside=self.inside,
            odds=self.odds,
        )

    @property
    def side(self) -> int | None:
        """Side of a crop; None shows whole images."""
        return self.recipe.side


def class_dice(outputs: torch.Tensor, sample: Sample, model: Model) -> float:
    """Mean Dice of the classes but background, where the labels count.

    Parameters
    ----------
    outputs : Tensor, shape (outputs, H, W)
        What the network said of the image, as probabilities.
    sample : Sample
        The truth.
    model : Model
        Knows which class each output belongs to.
    """
    found = model.class_probabilities(outputs).argmax(0).cpu().numpy()
    void = sample.classes.numpy() == VOID
    belongs = np.zeros(VOID + 1, dtype=int)
    belongs[: len(model.outputs)] = model.outputs
    truth = belongs[sample.classes.numpy()]
    classes = range(1, len(model.classes))
    return float(np.mean([dice(found == k, truth == k, ignore=void) for k in classes]))
