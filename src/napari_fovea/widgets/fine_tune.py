"""The Fine-tune dock: paint a few strokes, and the model learns from them."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np
from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QTimer
from qtpy.QtWidgets import QFileDialog, QVBoxLayout, QWidget

from napari_fovea.errors import FoveaError
from napari_fovea.widgets import layers
from napari_fovea.widgets.fine_tune_form import FineTuneForm, Said
from napari_fovea.widgets.job import Job, call
from napari_fovea.widgets.learning import History, Shown, View, learn, told
from napari_fovea.widgets.projects import Projects
from napari_fovea.widgets.results import ResultLayers
from napari_fovea.widgets.session import Session, session
from napari_fovea.widgets.strokes import (
    Pair,
    Watch,
    annotation_of,
    images_in,
    labels_in,
    new_strokes,
)

if TYPE_CHECKING:
    from collections.abc import Generator

    from napari_fovea.models import Entry, Model
    from napari_fovea.training.finetune import Tuner
    from napari_fovea.training.learned import Tuned

KEY = "N"
"""Goes to the next uncertain place."""

_LIFT = 120  # ms after the brush lifts: strokes often come in pairs


class FineTuneDock(QWidget):
    """Fine-tune the chosen model on what is painted.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        Where the layers are.
    shared : Session, optional
        What the docks share; one for all by default.
    """

    def __init__(self, napari_viewer: Any, *, shared: Session | None = None) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.session = shared or session()
        self.job: Job | None = None
        self.results: ResultLayers | None = None
        self.form = FineTuneForm(self.session)
        self.pairs: list[Pair] = []
        self.steps: list[History] = []
        self.current = -1
        self.candidate: tuple[Tuned, Any] | None = None
        self._tuner: tuple[Entry, str, Tuner] | None = None
        self.base: Entry | None = None
        self._again = False
        self._place: tuple[str, int] = ("", -1)
        self._seen: tuple[tuple[str, int], Any] | None = None
        self._visited: list[tuple[int, int]] = []
        self._jobs: list[Job] = []
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.form)
        self.setMinimumWidth(300)
        self._watch = Watch(self._lifted, self._changed)
        self.projects = Projects(self)
        self._lift = QTimer(self)
        self._lift.setSingleShot(True)
        self._lift.setInterval(_LIFT)
        self._lift.timeout.connect(self._learn_live)
        self._connect()
        self._take_hold()
        self.destroyed.connect(partial(_abandon, ref(self)))
        self.list_layers()
        self._model_changed()

    def _connect(self) -> None:
        form = self.form
        form.new_button.clicked.connect(self._new_strokes)
        form.add_button.clicked.connect(self._add_pair)
        form.remove_button.clicked.connect(self._remove_pair)
        form.train_button.clicked.connect(self.train)
        form.cancel_button.clicked.connect(self.cancel)
        form.anyway_button.clicked.connect(self._take_anyway)
        form.history.itemDoubleClicked.connect(self.go_back)
        form.back_button.clicked.connect(self.go_back)
        form.next_button.clicked.connect(self.next_place)
        form.save_button.clicked.connect(self._ask_save)
        form.painted_with.connect(self._paint_with)
        for box in (form.images, form.labels):
            box.currentIndexChanged.connect(lambda _: self._show_pairs())

    def _take_hold(self) -> None:
        """Follow what happens in the viewer and in other docks."""
        self._holds = True
        self.viewer.layers.events.renamed.connect(self.list_layers)
        self.viewer.layers.selection.events.active.connect(self._follow_selection)
        self.session.changed.connect(self._model_changed)
        self.viewer.bind_key(KEY, self._next_by_key, overwrite=True)

    def _let_go(self) -> None:
        """Leave the viewer alone: the dock is closed."""
        self._lift.stop()
        self.projects.keeper.close()
        self._disconnect()

    def _disconnect(self) -> None:
        """Follow nothing any more; the window may be gone already."""
        self._holds = self._again = False
        self.viewer.layers.events.renamed.disconnect(self.list_layers)
        self.viewer.layers.selection.events.active.disconnect(self._follow_selection)
        self.session.changed.disconnect(self._model_changed)
        if self._next_by_key in self.viewer.keymap.values():
            self.viewer.bind_key(KEY, None)
        self._watch.follow([])
        if self.job is not None:
            self.job.quit()

    # -- what can be chosen ------------------------------------------------------

    def reset_choices(self, event: Any = None) -> None:
        """List the layers anew; napari calls this when layers change."""
        if self._holds:  # napari calls it for docks that were closed too
            self.list_layers()

    def list_layers(self, event: Any = None) -> None:
        """List the layers anew, and forget pairs whose layers are gone."""
        there = set(self.viewer.layers)
        lost = [p for p in self.pairs if p.image not in there or p.labels not in there]
        self.pairs = [p for p in self.pairs if p not in lost]
        self.form.offer_layers(images_in(self.viewer), labels_in(self.viewer))
        self._show_pairs()
        self.projects.look_for_lost_work()
        if lost and self.job is not None:
            self.form.say(
                f"{lost[0]} was removed while it is learned from: the model is kept, "
                "what was painted is taken as it was.",
                Said.WARNING,
            )

    def _follow_selection(self, event: Any = None) -> None:
        self.form.follow(self.viewer.layers.selection.active)

    def _show_pairs(self) -> None:
        self.form.show_pairs([str(p) for p in self.pairs])
        self._watch.follow(p.labels for p in self.chosen_pairs())
        self._enable()

    def chosen_pairs(self) -> list[Pair]:
        """Pairs that are learned from: those of the list, or the one in the form."""
        if self.pairs:
            return self.pairs
        image, labels = self._layer(self.form.images), self._layer(self.form.labels)
        return [Pair(image, labels)] if image is not None and labels is not None else []

    def _layer(self, box: Any) -> Any:
        for layer in self.viewer.layers:
            if str(layer.unique_id) == box.currentData():
                return layer
        return None

    def _new_strokes(self) -> None:
        image = self._layer(self.form.images)
        if image is None:
            return
        try:
            classes = len(self.form.names())
        except FoveaError as error:
            self.form.say(str(error), Said.ERROR)
            return
        labels = new_strokes(self.viewer, image, classes=classes)
        self.list_layers()
        self.form.choose(self.form.labels, labels)
        if self.pairs:
            self.pairs.append(Pair(image, labels))
        self._show_pairs()
        self._see()

    def _see(self) -> None:
        """Show what the model in use says of the plane, and get ready to learn."""
        pairs, entry = self.chosen_pairs(), self.session.chosen
        if self.job is not None or entry is None or not pairs:
            return
        view = self._view_of(pairs)
        if view is None:
            return

        def make(cancelled: Any) -> Generator[Any, None, Any]:
            from napari_fovea.device import leaving_a_core

            yield from ()
            with leaving_a_core():
                return view.of(self._tuner_for(entry))

        def then(result: Any) -> None:
            self._show(result)
            self.form.say(
                "This is what the model says. Paint where it is wrong, at least two "
                "strokes of each class."
            )

        self._start(make, then)
        self.form.say("Looking at the image…")

    def _add_pair(self) -> None:
        image, labels = self._layer(self.form.images), self._layer(self.form.labels)
        if image is None or labels is None:
            return
        pair = Pair(image, labels)
        if pair not in self.pairs:
            self.pairs.append(pair)
        self._show_pairs()

    def _remove_pair(self) -> None:
        index = self.form.pair_list.currentRow()
        if 0 <= index < len(self.pairs):
            del self.pairs[index]
        self._show_pairs()

    def _paint_with(self, number: int) -> None:
        """Take the brush, on the labels that are learned from."""
        pairs = self.chosen_pairs()
        active = self.viewer.layers.selection.active
        mine = [p.labels for p in pairs]
        layer = active if active in mine else (mine[0] if mine else None)
        if layer is not None:
            self.viewer.layers.selection.active = layer
            layer.selected_label = number
            layer.mode = "paint"

    def _model_changed(self) -> None:
        chosen = self.session.chosen
        if chosen is not None and chosen is not self.base:
            self.base = chosen
            self.form.name_classes(chosen.header.classes)
            self._drop_job()
            self._begin_history(chosen.name)
        self._enable()

    def _drop_job(self) -> None:
        """Stop learning for another model than the one that is chosen now."""
        self._again = False
        if self.job is not None:
            self.job.quit()
            self.form.say(
                "Another model was chosen: what the last one was learning is dropped.",
                Said.WARNING,
            )

    def _begin_history(self, name: str) -> None:
        self.steps, self.current, self.candidate = [History(name)], 0, None
        self._tuner = self._seen = None
        self.show_history()

    def show_history(self) -> None:
        """List the models one can go back to."""
        self.form.show_history([s.name for s in self.steps], self.current)
        self._enable()

    def _enable(self) -> None:
        form, running = self.form, self.job is not None
        ready = self.session.chosen is not None and bool(self.chosen_pairs())
        form.train_button.setEnabled(ready and not running)
        form.cancel_button.setEnabled(running)
        form.new_button.setEnabled(form.images.count() > 0)
        form.next_button.setEnabled(ready and not running)
        form.open_project_button.setEnabled(not running)
        form.restore_button.setEnabled(not running)
        tuned = self.current > 0
        form.save_button.setEnabled(tuned and not running)
        form.back_button.setEnabled(not running and len(self.steps) > 1)
        form.anyway_button.setVisible(self.candidate is not None and not running)

    # -- learning ----------------------------------------------------------------

    def _lifted(self, layer: Any) -> None:
        if self.form.live.isChecked() and self.form.instant.isChecked():
            self._lift.start()

    def _changed(self, layer: Any) -> None:
        self._visited = []
        self.projects.keeper.touch(layer)

    def _learn_live(self) -> None:
        if self.job is None:
            self.train()
        else:
            self._again = True  # what was painted since is learned right after

    def train(self) -> None:
        """Learn from what is painted; a job that is running is left alone."""
        entry, pairs, form = self.session.chosen, self.chosen_pairs(), self.form
        if self.job is not None or entry is None or not pairs:
            return
        try:
            how = form.how()
            names = form.names()
            annotations = [annotation_of(p, **how) for p in pairs]
            view = self._view_of(pairs)
        except FoveaError as error:
            form.say(str(error), Said.ERROR)
            return
        mode = "instant" if form.instant.isChecked() else "thorough"
        settings = form.settings()
        self._again = False
        self.candidate = None
        form.curve.clear()

        def make(cancelled: Any) -> Generator[Any, None, Any]:
            from napari_fovea.device import leaving_a_core

            with leaving_a_core():
                tuner = self._tuner_for(entry)
                run = learn(tuner, annotations, names, mode, settings, view, cancelled)
                return (yield from run)

        self._start(make, self._learned)
        form.say("Looking…" if mode == "instant" else "Getting ready to train…")

    def _start(self, make: Any, then: Any) -> None:
        self._began = time.perf_counter()
        self._then = then
        self.form.progress.setValue(0)
        self.job = Job(make)
        self.job.yielded.connect(self._on_event)
        self.job.returned.connect(self._on_result)
        self.job.errored.connect(self.complain)
        self.job.finished.connect(self._on_finished)
        self._enable()
        self.job.start()

    def _tuner_for(self, entry: Entry) -> Tuner:
        """Take up what was looked at; called in the job's thread."""
        from napari_fovea.training.finetune import Tuner

        device = self.session.device
        if self._tuner is None or self._tuner[:2] != (entry, device):
            start = self.session.load(entry)
            tuner = Tuner(start, device=device)
            tuner.go_back(self.steps[self.current].tuned, start)
            self._tuner = (entry, device, tuner)
        return self._tuner[2]

    def _view_of(self, pairs: list[Pair]) -> View | None:
        """Find the plane that is shown, which is to be segmented again."""
        active = self.viewer.layers.selection.active
        pair = next((p for p in pairs if active in (p.image, p.labels)), pairs[0])
        self._shown = pair
        if pair.image.multiscale:
            return None
        region = layers.region_of(pair.image, self.viewer.dims, layers.PLANE)
        lead = pair.image.data.shape[: region.dropped]
        where = tuple(int(i) for i in region.offset[: region.dropped])
        index = int(np.ravel_multi_index(where, lead)) if lead else 0
        self._region, self._place = region, (pair.key, index)
        return View(pair.image.data, index, pair.key, pair.image.rgb)

    def cancel(self) -> None:
        """Stop learning; the last good model is kept."""
        self._again = False
        if self.job is not None:
            self.job.cancel()
            self.form.say("Stopping…")

    def _on_event(self, event: Any) -> None:
        if self.job is None or self.job.abort_requested:
            return
        if isinstance(event, Shown):
            self._show(event.result)
            return
        self.form.curve.add(event.step, event.loss, event.score)
        self.form.progress.setValue(int(1000 * event.fraction))
        if not self.job.cancelled:
            self.form.say(told(event, time.perf_counter() - self._began))

    def _on_result(self, result: Any) -> None:
        if result is not None and self.job is not None and not self.job.abort_requested:
            self._then(result)

    def _learned(self, result: Any) -> None:
        tuned, shown = result
        self.form.show_verdict(tuned.verdict)
        if tuned.verdict.better:
            self._take(tuned, shown)
        else:
            self.candidate = (tuned, shown)
            self.form.say(
                "The model in use is kept. Paint more, or use the new one anyway.",
                Said.WARNING,
            )

    def _take(self, tuned: Tuned, shown: Any) -> None:
        """Let a model take over; steps that came after the one in use are gone."""
        assert self._tuner is not None
        self._tuner[2].accept(tuned)
        instant = tuned.mode == "instant"
        again = instant and self.steps[self.current].live
        del self.steps[self.current + (0 if again else 1) :]
        count = len(self.steps)
        clock = time.strftime("%H:%M")
        name = f"{count} · {tuned.mode} · {tuned.verdict.after:.3f} · {clock}"
        live = instant and self.form.live.isChecked()
        self.steps.append(History(name, tuned, live))
        self.current = count
        self.candidate = None
        self.projects.keeper.step(self.steps[-1])
        self.show_history()
        made = tuned.model.provenance["fine_tuned"]
        self.form.say(f"Learned in {made['seconds']:.1f} s on {made['device']}")
        if shown is not None:
            self._show(shown)

    def _take_anyway(self) -> None:
        if self.candidate is not None:
            self._take(*self.candidate)

    def _show(self, result: Any) -> None:
        """Show a segmentation of the plane that was in view."""
        if self._shown.image not in self.viewer.layers:
            self.form.say(
                "The image was removed meanwhile: the model is kept, but there is "
                "nothing to show it on.",
                Said.WARNING,
            )
            return
        if self.results is None or self.results.region is not self._region:
            self.results = ResultLayers(
                self.viewer,
                self._shown.image,
                self._region,
                later=lambda f: QTimer.singleShot(0, f),
                in_order=False,
                quiet=True,
            )
        self._seen = (self._place, result.uncertainty)
        note = {"source": self._shown.image.name, "provenance": result.provenance}
        self.results.finish(result, note)

    def complain(self, error: Exception) -> None:
        """Say what went wrong."""
        known = isinstance(error, FoveaError)
        told = str(error) if known else f"{type(error).__name__}: {error}"
        self.form.say(told, Said.ERROR)

    def _on_finished(self) -> None:
        self.job = None
        self.form.progress.setValue(0)
        self._enable()
        if self._again:
            self._again = False
            self.train()

    # -- going back --------------------------------------------------------------

    def go_back(self, item: Any = None) -> None:
        """Use the chosen model of the history again."""
        index = self.form.history.currentRow()
        if self.job is not None or not 0 <= index < len(self.steps):
            return
        step, entry = self.steps[index], self.session.chosen
        if entry is None:
            return
        self.current, self.candidate = index, None
        self.projects.keeper.use(step)
        self.show_history()
        pairs = self.chosen_pairs()
        view = self._view_of(pairs) if pairs else None

        def make(cancelled: Any) -> Generator[Any, None, Any]:
            tuner = self._tuner_for(entry)
            tuner.go_back(step.tuned, self.session.load(entry))
            yield from ()
            return view.of(tuner) if view is not None else None

        self._start(make, self._show)
        self.form.say(f"Back at {step.name}")

    # -- where to paint next -----------------------------------------------------

    def _next_by_key(self, viewer: Any) -> None:
        self.next_place()

    def next_place(self) -> None:
        """Move the camera to where a stroke would teach most."""
        pairs, entry = self.chosen_pairs(), self.session.chosen
        if not pairs or entry is None or self.job is not None:
            return
        before = self._place
        view = self._view_of(pairs)
        if view is None:
            return
        try:
            annotation_of(self._shown, **self.form.how())
        except FoveaError as error:
            self.form.say(str(error), Said.ERROR)
            return
        if self._place != before:
            self._visited = []
        if self._seen is not None and self._seen[0] == self._place:
            self._go_to_most_uncertain(self._seen[1])
            return

        def make(cancelled: Any) -> Generator[Any, None, Any]:
            from napari_fovea.device import leaving_a_core

            yield from ()
            with leaving_a_core():
                return view.of(self._tuner_for(entry))

        def then(result: Any) -> None:
            self._show(result)
            self._go_to_most_uncertain(result.uncertainty)

        self._start(make, then)
        self.form.say("Looking for where the model is least sure…")

    def _go_to_most_uncertain(self, uncertainty: Any) -> None:
        from napari_fovea.training.where import most_uncertain

        pair = self._shown
        painted = np.asarray(pair.labels.data)
        if painted.ndim > 2:
            painted = painted.reshape(-1, *painted.shape[-2:])[self._place[1]]
        place = most_uncertain(uncertainty, painted > 0, visited=self._visited)
        if place is None:
            self.form.say("The model is sure of all that is left of this plane.")
            return
        self._visited.append(place)
        where = np.array([*self._region.offset[: self._region.dropped], *place])
        world = pair.image.data_to_world(where)
        self.viewer.scene.camera.center = tuple(world[-min(3, len(world)) :])
        self.viewer.layers.selection.active = pair.labels
        self.form.say("Paint here: the model is least sure of this place.")

    # -- keeping -----------------------------------------------------------------

    @property
    def model(self) -> Model | None:
        """The fine-tuned model in use, if there is one."""
        step = self.steps[self.current] if self.steps else None
        return step.tuned.model if step is not None and step.tuned is not None else None

    def _ask_save(self) -> None:
        base = self.base.name if self.base else "model"
        path, _ = QFileDialog.getSaveFileName(
            self,
            "Save the model",
            f"{base}-tuned.safetensors",
            "Models (*.safetensors)",
        )
        if path:
            self.save_model(path)

    def save_model(self, path: str | Path) -> None:
        """Save the model in use to a file, and offer it in all docks from now on."""
        model = self.model
        if model is None:
            return
        path = Path(path)
        if path.suffix != ".safetensors":
            path = path.with_name(f"{path.name}.safetensors")

        def write() -> Any:
            from napari_fovea.models import keep

            named = replace(model, name=path.stem)
            named.save(path, half=True)
            return keep(named)

        def then(entry: Any) -> None:
            self.session.offer_own(entry)
            self.form.say(
                f"Saved {path.name}; it is in the Model dock as {entry.name}."
            )

        self.run(call(write), then)

    def run(self, make: Any, then: Any) -> None:
        """Do something short beside what is going on."""

        def deliver(result: Any) -> None:
            if isalive(self):  # the window may have been closed meanwhile
                then(result)

        job = Job(make)
        self._jobs.append(job)
        job.returned.connect(deliver)
        job.errored.connect(self.complain)
        job.finished.connect(partial(self._jobs.remove, job))
        job.start()

    def changeEvent(self, event: Any) -> None:
        """Let go of everything when napari takes the dock away."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ParentChange:
            if self.parent() is None and self._holds:
                self._let_go()
            elif self.parent() is not None and not self._holds:
                self._take_hold()
                self.list_layers()
                self._model_changed()
        if event.type() in (QEvent.Type.PaletteChange, QEvent.Type.StyleChange):
            self.form.curve.match()


def _abandon(dock: ref[FineTuneDock], *_: Any) -> None:
    """Let go of everything when the window is closed with the dock in it."""
    there = dock()
    if there is not None and there._holds:
        there.projects.keeper.abandon()
        there._disconnect()
