"""Learns from strokes again and again, and keeps what can be used again."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from napari_fovea import device as devices
from napari_fovea.errors import TrainingError
from napari_fovea.inference.sizes import measured
from napari_fovea.networks import (
    Adapted,
    AdaptedRetina,
    MaskRCNNConfig,
    RetinaConfig,
    name_of,
)
from napari_fovea.training.adapting import replayed, stamped, student
from napari_fovea.training.evidence import (
    RIDGE,
    Gathered,
    choose_ridge,
    class_logits,
    fit_evidence,
    gather,
    row_scores,
)
from napari_fovea.training.fit import fit
from napari_fovea.training.guard import (
    Scores,
    Stroke,
    balanced,
    carried,
    fold_strokes,
    judge,
    strokes_of,
)
from napari_fovea.training.learned import Learning, Tuned
from napari_fovea.training.processes import check_precision
from napari_fovea.training.recipes import STROKES
from napari_fovea.training.seeing import Seeing
from napari_fovea.training.sizing import to_diameter
from napari_fovea.training.strokes import Lesson, held_scores, sample_of, stroke_task
from napari_fovea.training.teaching import read_all, teach

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    import torch

    from napari_fovea.models import Model
    from napari_fovea.training.painted import (
        Painted,
        PaintedPlane,
    )
    from napari_fovea.training.samples import Sample

SECONDS = 60.0
"""Time that thorough learning takes unless it is told otherwise."""


class Tuner(Seeing):
    """Learns from strokes again and again, and keeps what can be used again.

    Parameters
    ----------
    model : Model
        What to start from.
    device : str
        ``"auto"`` or a torch device.

    Attributes
    ----------
    trunk : Model
        What refits start from: all strokes are fitted to it anew.
    current : Tuned or None
        What took over last; None while that is the model it started from.
    """

    def __init__(self, model: Model, *, device: str = "auto") -> None:
        super().__init__(model, device=device)
        self.current: Tuned | None = None

    @property
    def model(self) -> Model:
        """The model in use."""
        return self.current.model if self.current is not None else self.trunk

    def accept(self, tuned: Tuned) -> None:
        """Let a model take over."""
        self._begin(tuned.trunk)
        self.current = tuned

    def go_back(self, tuned: Tuned | None, start: Model) -> None:
        """Use an earlier model again.

        Parameters
        ----------
        tuned : Tuned or None
            What took over then; None for the model it all began with.
        start : Model
            That model.
        """
        if tuned is None:
            self._begin(start)
        else:
            self._begin(tuned.trunk)
        self.current = tuned

    def _begin(self, trunk: Model) -> None:
        if trunk is not self.trunk:
            self.trunk = trunk
            self.forget()

    # -- instant -----------------------------------------------------------------------

    def instant(
        self,
        painted: Painted,
        *,
        name: str | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generator[Learning, None, Tuned]:
        """Fit how the network's features are read to all strokes; see `fine_tune`."""
        began = time.perf_counter()
        network = self.prepare(painted.classes)
        told = devices.describe(self.device)
        self._rows = {
            p.key: self._rows[p.key] for p in painted.planes if p.key in self._rows
        }
        rows = []
        for i, plane in enumerate(painted.planes):
            rows.append((plane.key, self.see(plane)))
            done = (i + 1) / len(painted.planes)
            yield Learning("looking", i + 1, 0.7 * done, device=told)
            if cancelled():
                break
        planes = painted.planes[: len(rows)]
        strokes = strokes_of(planes)
        gathered = gather(network, rows, strokes)
        start = network.weights
        parts = fold_strokes(strokes, complete=painted.complete)
        for i, tried in enumerate(choose_ridge(gathered, start, parts)):
            gathered, scores = tried
            yield Learning("fitting", i + 1, 0.8, None, balanced(scores), device=told)
            if cancelled():
                break
        losses: list[float] = []
        weights = fit_evidence(
            gathered, start, told=lambda step, loss: losses.append(loss)
        )
        for i, loss in enumerate(losses):
            yield Learning("fitting", i + 1, 0.9, loss, balanced(scores), device=told)
        # Bounded as what is read beside it: how sure both are can then be compared.
        before = row_scores(gathered, class_logits(gathered, start).softmax(1))
        same = len(self.model.classes) == len(painted.classes)
        if self.current is not None and self.current.mode == "instant" and same:
            before = self._before(planes, row_scores(gathered, self._now(gathered)))
        learned = self._learned(planes)
        fresh = {s: x for s, x in scores.items() if s not in learned} or scores
        verdict = judge(before, fresh, classes=len(painted.classes))
        model = copy.deepcopy(self.prepared)
        assert isinstance(model.network, Adapted | AdaptedRetina)
        model.network.weights = weights
        self._mine.add(model.network)
        model = stamped(
            replace(model, name=name or self.trunk.name),
            self.trunk,
            painted,
            verdict,
            settings={"mode": "instant"},
            seconds=time.perf_counter() - began,
            device=told,
        )
        return Tuned(model, self.trunk, verdict, "instant", scores, planes, learned)

    # -- thorough ----------------------------------------------------------------------

    def thorough(
        self,
        painted: Painted,
        *,
        seconds: float = SECONDS,
        name: str | None = None,
        precision: str = "float32",
        seed: int = 0,
        replay: Sequence[Sample] = (),
        freeze: bool = True,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generator[Learning, None, Tuned]:
        """Train the whole network on strokes; see `fine_tune`.

        A quarter of the strokes of each class is held out. Training starts where the
        instant learner stands after the others, unless the network itself does better
        on them. What is not painted is learned from what that start believes of it:
        the network is held there but for what the strokes say. What is read of the
        trained features is fitted to all strokes in the end.

        Parameters
        ----------
        freeze : bool
            Whether normalisations keep the statistics of the original training images.
        others
            See `fine_tune`.
        """
        began = time.perf_counter()
        if not seconds > 0:
            raise TrainingError(
                f"The time to learn is {seconds} s; expected more than 0."
            )
        check_precision(precision)
        start = student(self.trunk, painted)
        if replay and len(start.classes) != len(self.trunk.classes):
            raise TrainingError(
                f"There are {len(start.classes)} classes, but what is to be replayed "
                f"has the {len(self.trunk.classes)} of model {self.trunk.name!r}; "
                "expected as many: leave the replay out."
            )
        own = self.trunk.object_diameter
        if own is not None and measured(self.trunk, diameter=None, pixel_size=None):
            replay = to_diameter(replay, own, depths=start.depths)
        told = devices.describe(self.device)
        strokes = strokes_of(painted.planes)
        learned = self._learned(painted.planes)
        looking = time.perf_counter()
        parts = fold_strokes(
            [s for s in strokes if s not in learned], complete=painted.complete
        )
        held = frozenset(s for s, part in parts.items() if part == 0)
        before = self._scores(painted, held)
        yield Learning("looking", 0, 0.0, score=balanced(before), device=told)
        ridge = RIDGE
        teachers: dict[tuple[str, int], torch.Tensor] = {}
        if not painted.complete:
            taught = teach(self, painted, held)
            start, ridge = taught.start, taught.ridge
            for i, (key, teacher) in enumerate(taught.beliefs):
                teachers[key] = teacher
                yield Learning("looking", i + 1, 0.0, device=told)
                if cancelled():
                    start = student(self.trunk, painted)
                    break
        # In the end all is looked at once more, if there is time.
        looking = time.perf_counter() - looking
        # The features are no longer needed, and training takes memory itself.
        self.forget()
        objects = any(p.instances is not None for p in painted.planes)
        detects = isinstance(start.config, MaskRCNNConfig)
        classes = 0 if detects else len(start.classes)
        samples = [
            sample_of(
                plane,
                held,
                depths=start.depths,
                teacher=teachers.get(plane.key),
                classes=classes,
            )
            for plane in painted.planes
            if not held.issuperset(strokes_of([plane]))
        ]
        samples += [replayed(s, start, objects=objects) for s in replay]
        retina = isinstance(start.config, RetinaConfig)
        kind = "retina-vgg" if retina else name_of(start.network)
        recipe = STROKES.get(kind, STROKES[""])
        lesson = Lesson(painted.planes, held)
        task = stroke_task(
            start,
            samples,
            recipe=recipe,
            seed=seed,
            lesson=lesson,
            replay=len(replay),
            freeze=freeze,
        )
        training = fit(
            start,
            task,
            recipe,
            device=str(self.device),
            precision=precision,
            seed=seed,
            seconds=max(0.1, seconds - looking - (time.perf_counter() - began)),
            cancelled=cancelled,
        )
        try:
            while True:
                end = next(training)
                spent = time.perf_counter() - began
                yield Learning(
                    "training",
                    end.epoch,
                    min(1.0, spent / seconds),
                    end.loss,
                    end.score,
                    end.seconds_left,
                    told,
                    lesson.latest,
                )
        except StopIteration as stop:
            trained = stop.value
        finally:
            training.close()
            devices.give_back()
        model = trained.model
        model.network.to(self.device)
        scores = held_scores(model, lesson.planes, held)
        model.network.cpu()
        verdict = judge(before, scores, classes=len(painted.classes))
        late = cancelled() or time.perf_counter() - began > seconds
        if isinstance(model.network, Adapted | AdaptedRetina) and not late:
            seeing = Seeing(model, device=str(self.device))
            read_all(seeing, painted, ridge=ridge)
        model = stamped(
            replace(model, name=name or self.trunk.name),
            self.trunk,
            painted,
            verdict,
            settings={
                "mode": "thorough",
                "seconds": seconds,
                "seed": seed,
                "precision": precision,
                "replayed_images": len(replay),
                "statistics_kept": freeze,
                "recipe": asdict(recipe),
            },
            seconds=time.perf_counter() - began,
            device=told,
        )
        return Tuned(
            model,
            model,
            verdict,
            "thorough",
            scores,
            painted.planes,
            frozenset(strokes) - held,
        )

    def _scores(self, painted: Painted, held: frozenset[Stroke]) -> Scores:
        """How the model in use does on strokes that are to be held out."""
        if len(self.model.classes) != len(painted.classes):
            return dict.fromkeys(held, 1 / len(painted.classes))
        keys = {s.plane for s in held}
        planes = [p for p in painted.planes if p.key in keys]
        network = copy.deepcopy(self.model.network).to(self.device)
        scores = held_scores(replace(self.model, network=network), planes, held)
        if self.current is not None:
            scores = self._before(planes, scores)
        return {s: x for s, x in scores.items() if s in held}

    def _now(self, gathered: Gathered) -> torch.Tensor:
        """Class probabilities of rows by the model in use, which reads evidence."""
        assert self.current is not None
        network = self.current.model.network
        assert isinstance(network, Adapted | AdaptedRetina)
        return class_logits(gathered, network.weights).softmax(1).float()

    def _before(self, planes: Sequence[PaintedPlane], direct: Scores) -> Scores:
        """Scores of the model in use: what it learned from counts as when held out."""
        assert self.current is not None
        for plane in planes:
            direct |= carried(self.current.planes, self.current.scores, plane)
        return direct

    def _learned(self, planes: Sequence[PaintedPlane]) -> frozenset[Stroke]:
        """Strokes of which the trunk has learned something."""
        if self.current is None:
            return frozenset()
        known = dict.fromkeys(self.current.learned, 1.0)
        return frozenset(
            s for plane in planes for s in carried(self.current.planes, known, plane)
        )
