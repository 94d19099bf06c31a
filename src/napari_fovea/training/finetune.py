"""Fine-tuning on what a user paints, for scripts, command line and dock alike."""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

import numpy as np
import torch
from torch import nn

from napari_fovea import device as devices
from napari_fovea.errors import TrainingError
from napari_fovea.images import read_planes, to_tensor
from napari_fovea.inference.assembly import Assembly
from napari_fovea.inference.dense import ready
from napari_fovea.inference.reading import complete
from napari_fovea.inference.segmenting import reader_for
from napari_fovea.networks import (
    Adapted,
    AdaptedRetina,
    MaskRCNNConfig,
    PatchCenterConfig,
    RetinaConfig,
    name_of,
)
from napari_fovea.training.adapting import adapted, replayed, stamped, student
from napari_fovea.training.evidence import (
    class_logits,
    fit_evidence,
    gather,
    held_out_scores,
    row_scores,
)
from napari_fovea.training.fit import fit
from napari_fovea.training.guard import (
    Scores,
    Stroke,
    Verdict,
    balanced,
    carried,
    fold_strokes,
    judge,
    strokes_of,
)
from napari_fovea.training.looks import Looks, Rows, looks_of
from napari_fovea.training.painted import (
    Annotation,
    Painted,
    PaintedPlane,
    read_painted,
)
from napari_fovea.training.processes import check_precision
from napari_fovea.training.recipes import STROKES
from napari_fovea.training.samples import VOID
from napari_fovea.training.strokes import Lesson, held_scores, sample_of, stroke_task

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from numpy.typing import ArrayLike

    from napari_fovea.inference import Segmentation
    from napari_fovea.inference.reading import Seen
    from napari_fovea.models import Model
    from napari_fovea.training.samples import Sample

Mode = Literal["instant", "thorough"]

SECONDS = 60.0
"""Time that thorough learning takes unless it is told otherwise."""

KEPT = 512 << 20
"""Most bytes of features that are kept of planes other than the last one."""

_NEVER: Callable[[], bool] = lambda: False  # noqa: E731


@dataclass(frozen=True, slots=True)
class Learning:
    """How far a refit or a training has come.

    Attributes
    ----------
    phase : str
        ``"looking"``, ``"fitting"`` or ``"training"``.
    step : int
        Planes looked at, fits made, or epochs trained.
    fraction : float
        Estimate of how much is done, in [0, 1].
    loss : float or None
        Of what is learned from.
    score : float or None
        On strokes held out; see `Verdict`.
    seconds_left : float or None
        Estimate; None where nothing can be said.
    device : str
        What computes.
    model : Model or None
        The model as it stands, from thorough learning.
    """

    phase: str
    step: int
    fraction: float
    loss: float | None = None
    score: float | None = None
    seconds_left: float | None = None
    device: str = ""
    model: Model | None = None


@dataclass(frozen=True)
class Tuned:
    """A model that learned from strokes, and how it compares.

    Attributes
    ----------
    model : Model
        With its provenance.
    trunk : Model
        What later refits start from: of a thorough one this very model, of an instant
        one that which it was fitted to.
    verdict : Verdict
        Whether it may take over.
    mode : str
        ``"instant"`` or ``"thorough"``.
    scores : dict
        Score of each stroke when it was held out.
    planes : tuple of PaintedPlane
        What was painted.
    learned : frozenset of Stroke
        Strokes that weights before the last layer have learned: nothing can be held
        out of these any more.
    """

    model: Model
    trunk: Model
    verdict: Verdict
    mode: str
    scores: Scores
    planes: tuple[PaintedPlane, ...]
    learned: frozenset[Stroke] = frozenset()


def fine_tune(
    annotations: Sequence[Annotation],
    model: Model,
    *,
    mode: Mode = "instant",
    names: Mapping[int, str] | None = None,
    seconds: float = SECONDS,
    name: str | None = None,
    device: str = "auto",
    precision: str = "float32",
    seed: int = 0,
    replay: Sequence[Sample] = (),
    cancelled: Callable[[], bool] = _NEVER,
) -> Generator[Learning, None, Tuned]:
    """Let a model learn from what was painted.

    Parameters
    ----------
    annotations : sequence of Annotation
        Images and what was painted on them.
    model : Model
        What to start from; it is left alone.
    mode : str
        ``"instant"`` fits how the network's features are read; ``"thorough"`` trains
        all of it.
    names : mapping of int to str, optional
        What each painted number means; see `read_painted`.
    seconds : float
        What thorough learning may take.
    name : str, optional
        Of the new model; by default the old one's.
    device : str
        ``"auto"`` or a torch device.
    precision : str
        Of thorough learning; a name of `processes.PRECISIONS`.
    seed : int
        Of what is drawn at random.
    replay : sequence of Sample
        Images that the model learned from, to be shown again now and then.
    cancelled : callable
        Asked often; where it says yes, the best model so far is returned.

    Yields
    ------
    Learning

    Returns
    -------
    Tuned
        Its verdict tells whether it is better than what it started from.

    Raises
    ------
    TrainingError
        If nothing can be learned from the annotations, or the model cannot learn so.
    """
    tuner = Tuner(model, device=device)
    painted = read_painted(annotations, model, names=names)
    if mode == "instant":
        run = tuner.instant(painted, name=name, cancelled=cancelled)
    else:
        run = tuner.thorough(
            painted,
            seconds=seconds,
            name=name,
            precision=precision,
            seed=seed,
            replay=replay,
            cancelled=cancelled,
        )
    return (yield from run)


class Tuner:
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
        self.trunk = model
        self.current: Tuned | None = None
        self.device = devices.pick(device)
        self._adapted: tuple[tuple[str, ...], Model] | None = None
        self._network: Any = None
        self._looks: OrderedDict[tuple[str, int], tuple[str, Looks]] = OrderedDict()
        self._rows: dict[tuple[str, int], tuple[str, Rows]] = {}
        # Networks that read other evidence from the same looks.
        self._mine: WeakSet[nn.Module] = WeakSet()

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

    def forget(self) -> None:
        """Give back the memory of all that was seen."""
        self._adapted = self._network = None
        self._looks.clear()
        self._rows.clear()
        self._mine.clear()

    # -- looking -------------------------------------------------------------------

    def _prepare(self, classes: tuple[str, ...]) -> Any:
        """Make the trunk read evidence, on the device; kept until it changes."""
        if self._adapted is None or self._adapted[0] != classes:
            self.forget()
            model = adapted(self.trunk, classes)
            self._adapted = (classes, model)
            self._network = ready(model, self.device)
        return self._network

    def _can_adapt(self) -> bool:
        """Tell whether there is evidence to be read beside the trunk's opinion."""
        return not isinstance(self.trunk.config, MaskRCNNConfig | PatchCenterConfig)

    def _look(self, plane: PaintedPlane) -> Looks:
        assert self._adapted is not None
        digest = sha256(plane.image[:1].numpy().tobytes()).hexdigest()
        known = self._looks.get(plane.key)
        if known is None or known[0] != digest:
            image = plane.image.to(self.device)
            base = self._adapted[1]
            known = (digest, looks_of(self._network, image, model=base))
            self._looks[plane.key] = known
        self._looks.move_to_end(plane.key)
        while (
            len(self._looks) > 1
            and sum(x.bytes for _, x in self._looks.values()) > KEPT
        ):
            self._looks.popitem(last=False)
        return known[1]

    def _see(self, plane: PaintedPlane) -> Rows:
        parts = (plane.classes.tobytes(), plane.image[:1].numpy().tobytes())
        digest = sha256(b"".join(parts)).hexdigest()
        known = self._rows.get(plane.key)
        if known is None or known[0] != digest:
            known = (digest, self._look(plane).rows(plane))
            self._rows[plane.key] = known
        return known[1]

    # -- instant -----------------------------------------------------------------------

    def instant(
        self,
        painted: Painted,
        *,
        name: str | None = None,
        cancelled: Callable[[], bool] = _NEVER,
    ) -> Generator[Learning, None, Tuned]:
        """Fit how the network's features are read to all strokes; see `fine_tune`."""
        began = time.perf_counter()
        network = self._prepare(painted.classes)
        told = devices.describe(self.device)
        rows = []
        for i, plane in enumerate(painted.planes):
            rows.append((plane.key, self._see(plane)))
            done = (i + 1) / len(painted.planes)
            yield Learning("looking", i + 1, 0.7 * done, device=told)
            if cancelled():
                break
        planes = painted.planes[: len(rows)]
        strokes = strokes_of(planes)
        gathered = gather(network, rows, strokes)
        start = network.weights
        parts = fold_strokes(strokes, complete=painted.complete)
        losses: list[float] = []
        weights = fit_evidence(
            gathered, start, told=lambda step, loss: losses.append(loss)
        )
        for i, loss in enumerate(losses):
            yield Learning("fitting", i + 1, 0.8, loss, device=told)
        scores: Scores = {}
        for i, some in enumerate(held_out_scores(gathered, start, parts)):
            scores |= some
            so_far = balanced(scores)
            step = len(losses) + i + 1
            yield Learning("fitting", step, 0.9, None, so_far, device=told)
            if cancelled():
                break
        if torch.equal(start, torch.zeros_like(start)):
            base = gathered.base
        else:
            base = class_logits(gathered, start).softmax(1).float()
        before = row_scores(gathered, base)
        if self.current is not None and self.current.mode == "instant":
            before = self._before(planes, row_scores(gathered, self._now(gathered)))
        learned = self._learned(planes)
        fresh = {s: x for s, x in scores.items() if s not in learned} or scores
        verdict = judge(before, fresh)
        assert self._adapted is not None
        model = copy.deepcopy(self._adapted[1])
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
        cancelled: Callable[[], bool] = _NEVER,
    ) -> Generator[Learning, None, Tuned]:
        """Train the whole network on strokes; see `fine_tune`.

        A quarter of the strokes of each class is held out. What is not painted is
        learned from what the instant learner believes of it, so that the network is
        held where it stands but for what the strokes say.

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
        told = devices.describe(self.device)
        strokes = strokes_of(painted.planes)
        learned = self._learned(painted.planes)
        parts = fold_strokes(
            [s for s in strokes if s not in learned], complete=painted.complete
        )
        held = frozenset(s for s, part in parts.items() if part == 0)
        before = self._scores(painted, held)
        yield Learning("looking", 0, 0.0, score=balanced(before), device=told)
        teachers: dict[tuple[str, int], torch.Tensor] = {}
        if not painted.complete:
            run = self._teach(painted, held, cancelled)
            for i, (key, teacher) in enumerate(run):
                teachers[key] = teacher
                yield Learning("looking", i + 1, 0.0, device=told)
        # The features are no longer needed, and training takes memory itself.
        self.forget()
        detects = isinstance(start.config, MaskRCNNConfig)
        classes = 0 if detects else len(start.classes)
        samples = [
            sample_of(
                plane,
                held,
                border=start.border is not None,
                teacher=teachers.get(plane.key),
                classes=classes,
            )
            for plane in painted.planes
        ]
        samples += [replayed(s, start, complete=painted.complete) for s in replay]
        recipe = STROKES.get(name_of(start.network), STROKES[""])
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
            seconds=max(0.1, seconds - (time.perf_counter() - began)),
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
        model = trained.model
        model.network.to(self.device)
        scores = held_scores(model, lesson.planes, held)
        model.network.cpu()
        verdict = judge(before, scores)
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

    def _teach(
        self, painted: Painted, held: frozenset[Stroke], cancelled: Callable[[], bool]
    ) -> Generator[tuple[tuple[str, int], torch.Tensor], None, None]:
        """Class probabilities of all planes, from strokes that are not held out."""
        network = self._prepare(painted.classes)
        rows = [(plane.key, self._see(plane)) for plane in painted.planes]
        strokes = strokes_of(painted.planes)
        gathered = gather(network, rows, strokes)
        hidden = torch.tensor([*(s in held for s in strokes), bool(held)])
        use, start = ~hidden[gathered.index], network.weights
        taught = copy.deepcopy(network)
        taught.weights = fit_evidence(gathered, start, use=use)
        # Where the network knows its way already, it is its own best teacher.
        parts = fold_strokes([s for s in strokes if s not in held])
        scores: Scores = {}
        for some in held_out_scores(gathered, start, parts, use=use):
            scores |= some
        own = row_scores(gathered, gathered.base, of=use)
        trusted = network.config.kept and balanced(own) >= balanced(scores)
        assert self._adapted is not None
        for plane in painted.planes:
            outputs = self._look(plane).read(taught, plain=trusted).outputs
            yield plane.key, self._adapted[1].class_probabilities(outputs).cpu()
            if cancelled():
                return

    def _now(self, gathered: Any) -> torch.Tensor:
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

    def segment(
        self, image: ArrayLike, index: int, *, name: str, rgb: bool | None, model: Model
    ) -> Segmentation:
        """Segment a plane; if it was looked at already, without looking again.

        Parameters
        ----------
        image : array_like
            As in `Annotation`.
        index : int
            Plane of the stack, counted from 0.
        name : str
            Of the image, as in its annotation.
        rgb : bool, optional
            Whether the last axis holds channels; guessed by default.
        model : Model
            That in use, or one that came from this tuner.

        Returns
        -------
        Segmentation
            Of the plane alone.
        """
        began = time.perf_counter()
        planes = read_planes(image, rgb=rgb).for_network(model.channels, blank=True)
        limits = model.normalisation.limits(planes)
        one = replace(planes, data=planes.data[index : index + 1], lead=())
        pixels = to_tensor(one.data[0], limits=limits, channels=model.channels)
        seen = self._read((name, index), pixels, model)
        focused = isinstance(model.config, RetinaConfig)
        store = Assembly(
            one, classes=len(model.classes), shape=one.shape, focused=focused
        )
        store.add(0, model, seen, diameter=model.object_diameter)
        path = store.path(grid=model.config.grid) if focused else None  # type: ignore[attr-defined]
        made = {
            "model": model.name,
            "fine_tuned": model.provenance.get("fine_tuned"),
            "device": devices.describe(self.device),
            "fixations": len(path) if path is not None else None,
            "cancelled": False,
            "seconds": round(time.perf_counter() - began, 3),
        }
        return store.result(path, made)

    def _read(self, key: tuple[str, int], pixels: torch.Tensor, model: Model) -> Seen:
        network = copy.deepcopy(model.network).to(self.device)
        shape = (pixels.shape[1], pixels.shape[2])
        plain = model is self.trunk and self._can_adapt()
        if plain:
            self._prepare(self._adapted[0] if self._adapted else model.classes)
        if plain or model.network in self._mine:
            nothing = np.full(shape, VOID, np.uint8)
            plane = PaintedPlane(key, pixels, nothing, np.zeros(shape, np.int32))
            network = self._network if plain else network
            return self._look(plane).read(network, plain=plain)
        placed = replace(model, network=network)
        run = reader_for(placed, self.device, shape).read(
            pixels.to(self.device), scale=(1.0, 1.0), cancelled=_NEVER
        )
        seen: Seen = complete(run)
        return seen
