"""Several models that read a plane together."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from napari_fovea.images import resize
from napari_fovea.inference.instances import depth_inside
from napari_fovea.inference.reading import Choice, Seen, Step
from napari_fovea.inference.runner import Runners
from napari_fovea.retina import entropy

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from napari_fovea.inference.reading import Reader
    from napari_fovea.models import Model


class JointReader:
    """Reads planes with every member of an ensemble, each at its own scale.

    Parameters
    ----------
    model : Model
        An ensemble of systems; see `models.ensemble.joined`.
    readers : sequence of Reader
        One for each member.
    """

    def __init__(self, model: Model, readers: Sequence[Reader]) -> None:
        self._model = model
        self._readers = tuple(readers)

    @property
    def runner(self) -> Runners:
        """What runs the networks."""
        return Runners([reader.runner for reader in self._readers])

    @property
    def home(self) -> torch.device:
        """Where planes lie best: they are resized for each member."""
        return self._readers[0].home

    @property
    def settings(self) -> dict[str, Any]:
        """What members were told, or chose for the plane they have read last."""
        each = zip(self._model.members, self._readers, strict=True)
        return {"members": [{"model": m.name} | r.settings for m, r in each]}

    def choose(self, image: torch.Tensor) -> Choice:
        """Choose how to read planes like one; see `Reader.choose`."""
        for member, reader in zip(self._model.members, self._readers, strict=True):
            reader.choose(self._placed(image, member, reader))
        return Choice(self.runner.precision)

    def read(
        self,
        image: torch.Tensor,
        *,
        scale: tuple[float, float] = (1.0, 1.0),
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generator[Step, None, Seen]:
        """Read a plane; see `Reader.read`."""
        votes = _Votes(self._model, image.shape[1:])
        count = len(self._readers)
        for index, member in enumerate(self._model.members):
            reader = self._readers[index]
            placed = self._placed(image, member, reader)
            # Members' own pixels of the user's image are not told of.
            run = reader.read(placed, scale=scale, cancelled=cancelled)
            try:
                while True:
                    step = next(run)
                    part = votes.plus(member, step)
                    yield Step(
                        (index + min(1.0, step.fraction)) / count,
                        part.told,
                        unsure=part.apart,
                    )
            except StopIteration as end:
                votes.add(member, end.value)
            if cancelled():
                break
        return votes.seen()

    def _placed(
        self, image: torch.Tensor, member: Model, reader: Reader
    ) -> torch.Tensor:
        """Bring a plane to a member's scale, and to where it wants it."""
        shape = member_shape(self._model, member, image.shape[1:])
        return resize(image.to(reader.home), shape)


def member_shape(model: Model, member: Model, shape: Sequence[int]) -> tuple[int, int]:
    """Height and width at which a member is shown a plane of the ensemble's."""
    height, width = shape
    factor = member_scale(model, member)
    return max(1, round(height * factor)), max(1, round(width * factor))


def member_scale(model: Model, member: Model) -> float:
    """By how much a plane of the ensemble's is resized for a member."""
    if model.object_diameter is None or member.object_diameter is None:
        return 1.0
    return member.object_diameter / model.object_diameter


class _Votes:
    """Sums of what members say of each pixel; those that did not look have no say."""

    def __init__(self, model: Model, shape: Sequence[int]) -> None:
        height, width = shape
        self._model = model
        self._size = (height, width)
        self._classes = torch.zeros(len(model.classes), height, width)
        self._entropy = torch.zeros(height, width)
        self._count = torch.zeros(height, width)
        self._depth = torch.zeros(height, width)
        self._deep = torch.zeros(height, width)

    def add(self, member: Model, seen: Seen) -> None:
        """Count what a member has read."""
        looked = self._count_in(member, seen.outputs, seen.weights)
        depth = _depth(member, seen)
        if depth is not None:
            self._depth += resize(depth.cpu().float()[None], self._size)[0] * looked
            self._deep += looked

    def plus(self, member: Model, step: Step) -> _Part:
        """Tell how it stands while a member is reading, if anybody asks."""
        return _Part(self, member, step)

    def told(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Tell outputs, and how many members have looked."""
        mean = self._mean()
        if self._model.depths is None:
            return mean, self._count
        depth = self._depth / self._deep.clamp(min=1)
        core = torch.minimum(depth, mean[1])
        return torch.stack([mean[0], mean[1] - core, core]), self._count

    def apart(self) -> torch.Tensor:
        """Tell what members disagree about, in nats."""
        own = self._entropy / self._count.clamp(min=1)
        # Rounded, members that agree may come out a little below 0.
        return (entropy(self._mean()) - own).clamp(min=0) * (self._count > 0)

    def seen(self) -> Seen:
        """Tell what all have said."""
        return Seen(*self.told(), uncertainty=self.apart())

    def _mean(self) -> torch.Tensor:
        mean = self._classes / self._count.clamp(min=1)
        mean[:, self._count == 0] = 1 / len(mean)
        return mean

    def _count_in(
        self, member: Model, outputs: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        classes = member.class_probabilities(outputs.cpu().float())
        looked = (weights > 0).cpu().float()
        classes = torch.where(looked > 0, classes, 1 / len(classes))
        classes = resize(classes, self._size)
        # A pixel counts as seen where most of it was.
        there = (resize(looked[None], self._size)[0] > 0.5).float()
        self._classes += classes * there
        self._entropy += entropy(classes) * there
        self._count += there
        return there


class _Part:
    """Votes with those of a member that is still reading."""

    def __init__(self, votes: _Votes, member: Model, step: Step) -> None:
        self._votes, self._member, self._step = votes, member, step

    def told(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Tell outputs, and how many members have looked."""
        return self._now.told()

    def apart(self) -> torch.Tensor:
        """Tell what members disagree about, in nats."""
        return self._now.apart()

    @cached_property
    def _now(self) -> _Votes:
        now = copy.copy(self._votes)
        for name, value in vars(now).items():
            if isinstance(value, torch.Tensor):
                setattr(now, name, value.clone())
        now._count_in(self._member, *self._step.peek())
        return now


def _depth(member: Model, seen: Seen) -> torch.Tensor | None:
    """How deep inside an object each pixel lies, as far as a member can tell."""
    depth = member.depth(seen.outputs)
    if depth is None and seen.instances is not None and len(member.classes) == 2:
        inside = torch.from_numpy(depth_inside(seen.instances)).float()
        depth = inside * (1 - seen.outputs[0].cpu())
    return depth
