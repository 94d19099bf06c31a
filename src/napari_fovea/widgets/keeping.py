"""Keeping what a user paints and learns, so that nothing is lost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from qtpy.QtCore import QObject, QTimer, Signal

from napari_fovea.widgets.job import Jobs, call
from napari_fovea.widgets.learning import History
from napari_fovea.widgets.strokes import Pair, stroke_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from napari_fovea.project import (
        ImageId,
        Journal,
        Project,
        Step,
        Strokes,
        Unfinished,
    )

_SOON = 400  # ms from a change to the journal
_COPIED = 1 << 24  # values up to which a whole layer is copied at once


class Keeper(QObject):
    """Writes strokes, classes, settings and models to a journal as the user works.

    Parameters
    ----------
    pairs : callable
        Tells the pairs that are learned from.
    about : callable
        Tells base, classes and settings.
    """

    failed = Signal(str)

    def __init__(
        self,
        pairs: Callable[[], list[Pair]],
        about: Callable[[], tuple[str, dict[int, str], dict[str, Any]]],
    ) -> None:
        super().__init__()
        self._pairs, self._about = pairs, about
        self._journal: Journal | None = None
        self._ids: dict[Any, ImageId] = {}  # by image layer
        self._dirty: set[Any] = set()
        self._told = 0
        self._jobs = Jobs()
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_SOON)
        self._timer.timeout.connect(self.record)

    @property
    def journal(self) -> Journal:
        """The journal; it makes no file before something was painted."""
        if self._journal is None:
            from napari_fovea.project import Journal

            # Told from the writer's thread; a Qt signal brings it to this one.
            self._journal = Journal(on_error=self.failed.emit)
        return self._journal

    @property
    def kept(self) -> bool:
        """Whether all that was touched was handed to the journal."""
        return self._journal is not None and not self._dirty and not self._jobs

    def touch(self, layer: Any) -> None:
        """Remember that a layer changed; it is written soon."""
        self._dirty.add(layer)
        if not self._timer.isActive():
            self._timer.start()

    def record(self) -> None:
        """Hand what changed to the journal, which writes it in its own thread."""
        dirty, self._dirty = self._dirty, set()
        for pair in self._pairs():
            if pair.labels not in dirty:
                continue
            if pair.image in self._ids:
                self._write(pair)
            else:
                self._identify(pair)
        if self._journal is not None:
            self._journal.settings(*self._about())

    def _identify(self, pair: Pair) -> None:
        data = pair.image.data[0] if pair.image.multiscale else pair.image.data
        name, path = pair.image.name, pair.image.source.path

        def look() -> Any:
            from napari_fovea.project import identify

            return identify(data, name, path)

        def then(found: ImageId) -> None:
            self._ids[pair.image] = found
            self.touch(pair.labels)

        self.run(call(look), then)

    def _write(self, pair: Pair) -> None:
        data, key = np.asarray(pair.labels.data), str(pair.labels.unique_id)
        if data.size <= _COPIED:
            data = data.copy()
        # A larger one is read while it may be painted on: what is written then is
        # soon written again.
        self.journal.strokes(key, self._ids[pair.image], pair.labels.name, data)

    def step(self, step: History) -> None:
        """Keep a model that took over."""
        if not self._told:
            self.journal.step(start_step(self._about()[0]))
        model = step.tuned.model if step.tuned is not None else None
        self.journal.step(step_of(step), model)
        self._told += 1
        step.number = self._told
        self.use(step)
        self.journal.settings(*self._about())

    def use(self, step: History) -> None:
        """Remember which model is in use."""
        if self._told and (step.number or step.tuned is None):
            self.journal.current(step.number)

    def close(self, *, discard: bool = False) -> None:
        """Write what waits and let go."""
        self._know_all()
        if self._dirty or self._journal is not None:
            self.record()
        self.abandon(discard=discard)

    def abandon(self, *, discard: bool = False) -> None:
        """Let go as things stand: what was not handed over is lost."""
        self._timer.stop()
        self._dirty.clear()
        for job in self._jobs:
            job.quit()
        if self._journal is not None:
            self._journal.close(discard=discard)
            self._journal = None
        self._told = 0

    def _know_all(self) -> None:
        """Identify at once what was painted on a moment ago, where that is quick."""
        from napari_fovea.project import identify

        for pair in self._pairs():
            data, image = pair.image.data, pair.image
            if image not in self._ids and isinstance(data, np.ndarray):
                self._ids[image] = identify(data, image.name, image.source.path)

    def run(self, make: Any, then: Any) -> None:
        """Do something in a thread."""
        self._jobs.begin(make, then, lambda error: self.failed.emit(str(error)))


def now() -> str:
    """Tell the time as steps do."""
    return time.strftime("%Y-%m-%dT%H:%M:%S")


def start_step(base: str) -> Step:
    """Describe the model that it all began with."""
    from napari_fovea.project import Step

    return Step(base, "start", None, None, now())


def step_of(step: History, file: str | None = None) -> Step:
    """Describe a model of the history."""
    from napari_fovea.project import Step

    tuned = step.tuned
    assert tuned is not None
    verdict = tuned.verdict
    mode: Literal["instant", "thorough"] = (
        "instant" if tuned.mode == "instant" else "thorough"
    )
    return Step(step.name, mode, verdict.before, verdict.after, step.date, file)


def project_of(
    pairs: Sequence[Pair],
    history: Sequence[History],
    current: int,
    about: tuple[str, dict[int, str], dict[str, Any]],
) -> tuple[Project, dict[str, Any]]:
    """Put together what a project folder holds; for a job, since it reads images."""
    from napari_fovea.project import Project, Strokes, identify

    strokes = []
    for pair in pairs:
        data = pair.image.data[0] if pair.image.multiscale else pair.image.data
        image = identify(data, pair.image.name, pair.image.source.path)
        strokes.append(Strokes(image, pair.labels.name, np.array(pair.labels.data)))
    base, classes, settings = about
    models, steps = {}, []
    for i, step in enumerate(history):
        if step.tuned is None:
            steps.append(start_step(step.name))
        else:
            file = f"models/{i:03}.safetensors"
            models[file] = step.tuned.model
            steps.append(step_of(step, file))
    project = Project(base, tuple(strokes), classes, settings, tuple(steps), current)
    return project, models


def history_of(folder: Path, project: Project) -> list[History]:
    """Read the models of a project; for a job."""
    from napari_fovea.project import load_step
    from napari_fovea.training.guard import Verdict
    from napari_fovea.training.learned import Tuned

    history = []
    for step in project.steps:
        if step.file is None:
            history.append(History(step.name, date=step.date))
            continue
        model = load_step(folder, step)
        verdict = Verdict(step.before or 0.0, step.after or 0.0, 0, 0.0, 0.0)
        tuned = Tuned(model, model, verdict, step.mode, {}, ())
        history.append(History(step.name, tuned, date=step.date))
    return history


def lost_work(
    images: Sequence[tuple[Any, str, str | None]], *, but: Collection[Path] = ()
) -> tuple[Unfinished, list[int | None]] | None:
    """Find the newest work that was left behind; for a job.

    Parameters
    ----------
    images : sequence of (array, name, path)
        Images that are open.
    but : collection of Path
        Folders of work that was brought back already.

    Returns
    -------
    tuple or None
        The work, and for each of its strokes the number of the image they belong on,
        None where that is not open. Work on an open image comes first.
    """
    from napari_fovea.project import identify, unfinished

    works = [work for work in unfinished() if work.folder not in but]
    if not works:
        return None
    ids = [identify(*image) for image in images]
    placed = [(work, matches(work.project, ids)) for work in works]
    known = [p for p in placed if any(i is not None for i in p[1])]
    return (known or placed)[0]


def matches(project: Project, ids: Sequence[ImageId]) -> list[int | None]:
    """Tell on which image each of a project's strokes belong."""
    from napari_fovea.project import same

    return [
        next((i for i, image in enumerate(ids) if same(image, strokes.image)), None)
        for strokes in project.strokes
    ]


def bring_back(viewer: Any, image: Any, strokes: Strokes, *, classes: int) -> Pair:
    """Lay strokes over the image they were painted on."""
    layer = stroke_layer(image, strokes.labels, name=strokes.layer, classes=classes)
    viewer.add_layer(layer)
    return Pair(image, layer)
