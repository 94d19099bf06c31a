"""What networks learn from when only strokes are known of the images."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from napari_fovea.inference.choosing import reader_for
from napari_fovea.inference.reading import complete
from napari_fovea.losses import LOSSES, cell_cross_entropy
from napari_fovea.networks import DenseConfig, MaskRCNNConfig, RetinaConfig
from napari_fovea.retina import IGNORE, cell_pmfs
from napari_fovea.training.augment import vary_light
from napari_fovea.training.detection import DetectionTask
from napari_fovea.training.guard import Scores, balanced, stroke_scores
from napari_fovea.training.retina import RetinaTask
from napari_fovea.training.samples import VOID, Sample, depth_classes
from napari_fovea.training.task import CropTask, Task
from napari_fovea.training.views import by_area, together

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

    from napari_fovea.models import Model
    from napari_fovea.retina import RetinaGrid
    from napari_fovea.training.guard import Stroke
    from napari_fovea.training.painted import PaintedPlane
    from napari_fovea.training.recipe import Recipe


REPLAYED = 0.25
"""Share of what is shown that the model learned from before, if there is any."""


@dataclass(frozen=True)
class Known:
    """A batch: images, what is known of them, and what a teacher says.

    Attributes
    ----------
    image : Tensor of float32, shape (B, C, h, w)
    classes : Tensor of uint8, shape (B, h, w)
        255 where nothing is known.
    teacher : Tensor of float32, shape (B, K, h, w)
        Class probabilities; all 0 where there is no teacher.
    """

    image: torch.Tensor
    classes: torch.Tensor
    teacher: torch.Tensor


class Lesson:
    """What is held out of a training, and how it is scored.

    Attributes
    ----------
    planes : sequence of PaintedPlane
        Those with strokes that are held out.
    held : set of Stroke
        The strokes that are scored.
    latest : Model or None
        The model as it stood when it was scored last.
    """

    def __init__(
        self, planes: Sequence[PaintedPlane], held: AbstractSet[Stroke]
    ) -> None:
        keys = {stroke.plane for stroke in held}
        self.planes = [p for p in planes if p.key in keys]
        self.held = held
        self.latest: Model | None = None

    def score(self, model: Model) -> float | None:
        """Score held-out strokes; None if there are none."""
        # A copy: training goes on with the weights.
        network = copy.deepcopy(model.network)
        self.latest = replace(model, network=network)
        if not self.held:
            return None
        return balanced(held_scores(model, self.planes, self.held))


def held_scores(
    model: Model, planes: Sequence[PaintedPlane], held: AbstractSet[Stroke]
) -> Scores:
    """Read planes and tell what probability is given to strokes; see `Verdict`."""
    device = next(model.network.parameters()).device
    scores: Scores = {}
    for plane in planes:
        height, width = plane.classes.shape
        reader = reader_for(model, device, (height, width))
        run = reader.read(
            plane.image.to(device), scale=(1.0, 1.0), cancelled=lambda: False
        )
        classes = model.class_probabilities(complete(run).outputs).cpu().numpy()
        scores |= stroke_scores(plane, classes)
    return {s: x for s, x in scores.items() if s in held}


def sample_of(
    plane: PaintedPlane,
    held: AbstractSet[Stroke],
    *,
    depths: Sequence[float] | None,
    teacher: torch.Tensor | None,
    classes: int,
) -> Sample:
    """Prepare a plane to be learned from.

    Parameters
    ----------
    plane : PaintedPlane
        What was painted.
    held : set of Stroke
        Strokes of which nothing is to be learned.
    depths : sequence of float or None
        Of the network's outputs, if it tells how deep inside objects pixels lie; then
        the classes are its outputs, if objects are known.
    teacher : Tensor of float32, shape (K, H, W), optional
        What is believed of the rest; it is carried along as further channels.
    classes : int
        Number of classes K.
    """
    hidden = [s.number for s in held if s.plane == plane.key]
    void = (plane.classes == VOID) | np.isin(plane.strokes, hidden)
    known = np.where(void, VOID, plane.classes).astype(np.uint8)
    instances = plane.instances
    if instances is not None:
        instances = np.where(void, 0, instances)
        if depths is not None:
            known = depth_classes(instances, depths=depths, void=void)
    if teacher is None:
        teacher = torch.zeros(classes, *plane.classes.shape)
    image = torch.cat([plane.image.cpu(), teacher.float().cpu()])
    name = f"{plane.key[0]}, plane {plane.key[1]}"
    return Sample(name, image, torch.from_numpy(known), instances)


def class_logs(
    logits: torch.Tensor, belongs: Sequence[int], *, axis: int = 1
) -> torch.Tensor:
    """Log-probabilities of classes, from logits of the outputs that belong to them.

    Parameters
    ----------
    logits : Tensor
        One (sigmoid) or one for each output (soft-max) along ``axis``.
    belongs : sequence of int
        Class of each output.
    axis : int
        Where they lie.
    """
    logits = logits.float()
    if logits.shape[axis] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=axis)
    logs = logits.log_softmax(axis)
    parts = []
    for c in range(max(belongs) + 1):
        own = [i for i, k in enumerate(belongs) if k == c]
        index = torch.tensor(own, device=logs.device)
        parts.append(logs.index_select(axis, index).logsumexp(axis))
    return torch.stack(parts, dim=axis)


def stroke_loss(
    logs: torch.Tensor, classes: torch.Tensor, teacher: torch.Tensor
) -> torch.Tensor:
    r"""Cross-entropy of what was painted, and with what a teacher believes.

    .. math:: L = -\frac1{|K'|} \sum_{k \in K'} \frac1{n_k} \sum_{i \in k}
              \log y_k^{(i)} - \frac1n \sum_i \sum_k q_k^{(i)} \log y_k^{(i)}

    over the classes K' that are painted in the batch, all counting alike.

    Parameters
    ----------
    logs : Tensor, shape (B, K, H, W)
        Log-probabilities y.
    classes : Tensor of int64, shape (B, H, W)
        255 where nothing was painted.
    teacher : Tensor, shape (B, K, H, W)
        q; all 0 where the teacher says nothing.
    """
    loss = -(teacher * logs).sum(1).mean()
    present = [c for c in range(logs.shape[1]) if bool((classes == c).any())]
    for c in present:
        loss = loss - logs[:, c][classes == c].mean() / len(present)
    return loss


class _StrokeTask(Task[Any]):
    """What the kinds of networks share that learn from strokes; see `Task`.

    Parameters
    ----------
    lesson : Lesson
        What is held out.
    replay : int
        How many of the samples, the last ones, are of what was learned before.
    freeze : bool
        Whether normalisations keep the statistics of what was learned before.
    others
        See `Task`.
    """

    def __init__(
        self,
        *arguments: Any,
        lesson: Lesson,
        replay: int = 0,
        freeze: bool = True,
        **settings: Any,
    ) -> None:
        self.lesson, self.freeze, self._replay = lesson, freeze, replay
        super().__init__(*arguments, **settings)
        # Labels of objects name outputs, by depth; others name classes.
        objects = any(s.instances is not None for s in self.samples)
        self._by_output = objects and len(self.model.outputs) > len(self.model.classes)

    @property
    def odds(self) -> NDArray[np.floating]:
        """What was painted is shown more often than what is replayed."""
        return _mixed(by_area(self.samples), self._replay)

    def begin(self, network: nn.Module) -> None:
        """Keep the statistics of normalisations, or learn them anew."""
        network.train()
        for part in network.modules():
            kind = nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd
            if self.freeze and isinstance(part, kind):
                part.eval()

    def score(self, model: Model) -> float | None:
        """Score held-out strokes."""
        return self.lesson.score(model)


def _mixed(odds: NDArray[np.floating], replay: int) -> NDArray[np.floating]:
    """Give what is replayed, the last ones, their share."""
    if not replay:
        return odds
    odds = odds.copy()
    odds[:-replay] *= (1 - REPLAYED) / odds[:-replay].sum()
    odds[-replay:] *= REPLAYED / odds[-replay:].sum()
    return odds


class StrokeDenseTask(_StrokeTask, CropTask[Known]):
    """Shows crops with strokes to a network that tells every pixel's class."""

    def batch(self, rng: np.random.Generator, size: int) -> Known:
        """Draw crops, and vary the light on the images alone."""
        view = together([self.views.draw(rng) for _ in range(size)])
        c = self.model.channels
        image = vary_light(view.image[:, :c], augmentation=self.light, rng=rng)
        return Known(image, view.classes, view.image[:, c:])

    def loss(
        self, network: nn.Module, batch: Known, device: torch.device
    ) -> torch.Tensor:
        """See `stroke_loss`; complete objects are learned with the recipe's loss."""
        image = batch.image.to(device, memory_format=torch.channels_last)
        classes = batch.classes.to(device).long()
        logits = network(image)
        if self._by_output:
            return LOSSES[self.recipe.loss](logits, classes, mask=classes != VOID)
        logs = class_logs(logits, self.model.outputs)
        return stroke_loss(logs, classes, batch.teacher.to(device))


class StrokeRetinaTask(_StrokeTask, RetinaTask):
    """Shows views with strokes to a retina network."""

    def batch(self, rng: np.random.Generator, size: int) -> Any:
        """Draw views, and vary the light on the images alone."""
        views = [self._view(rng) for _ in range(size)]
        both = torch.stack([image for image, _ in views])
        c = self.model.channels
        crops = vary_light(both[:, :c], augmentation=self.light, rng=rng)
        return Known(crops, torch.stack([k for _, k in views]), both[:, c:])

    def loss(
        self, network: nn.Module, batch: Any, device: torch.device
    ) -> torch.Tensor:
        """Cross-entropy of the cells, equation (1), over what is painted in them."""
        truth = batch.classes.to(device).long()
        truth[truth == VOID] = IGNORE
        logits = network(batch.image.to(device, memory_format=torch.channels_last))
        if self._by_output:
            pmfs, seen = cell_pmfs(truth, self.grid, classes=len(self.model.outputs))
            return cell_cross_entropy(logits, pmfs, mask=seen)
        logs = class_logs(logits, self.model.outputs, axis=2)  # (B, N, K)
        pmfs, _ = cell_pmfs(truth, self.grid, classes=len(self.model.classes))
        # A cell says as much as is painted of it: the rest may be anything.
        known = cell_means((truth != IGNORE)[:, None].float(), self.grid)  # (B, N, 1)
        weights = pmfs * known
        mass = weights.sum((0, 1))  # (K,)
        loss = -(weights * logs).sum((0, 1)) / mass.clamp(min=1e-6)
        believed = cell_means(batch.teacher.to(device), self.grid)
        return (
            loss.sum() / (mass > 0).sum().clamp(min=1) - (believed * logs).sum(2).mean()
        )


def cell_means(planes: torch.Tensor, grid: RetinaGrid) -> torch.Tensor:
    """Means (B, N, K) over the cells of planes (B, K, d, d)."""
    index = torch.from_numpy(grid.cell_index).flatten().to(planes.device)
    areas = torch.from_numpy(grid.areas).to(planes.device)
    sums = planes.new_zeros(*planes.shape[:2], grid.n_cells)
    return (sums.index_add(2, index, planes.flatten(2)) / areas).transpose(1, 2)


class StrokeDetectionTask(_StrokeTask, DetectionTask):
    """Shows crops with complete objects to a detector."""


def stroke_task(
    model: Model,
    samples: Sequence[Sample],
    *,
    recipe: Recipe,
    seed: int,
    lesson: Lesson,
    replay: int = 0,
    freeze: bool = True,
) -> Task[Any]:
    """Choose what a model of this kind learns from."""
    kinds: tuple[tuple[type, type[_StrokeTask]], ...] = (
        (RetinaConfig, StrokeRetinaTask),
        (MaskRCNNConfig, StrokeDetectionTask),
        (DenseConfig, StrokeDenseTask),
    )
    kind = next(t for c, t in kinds if isinstance(model.config, c))
    return kind(
        model,
        samples,
        [],
        recipe=recipe,
        seed=seed,
        lesson=lesson,
        replay=replay,
        freeze=freeze,
    )
