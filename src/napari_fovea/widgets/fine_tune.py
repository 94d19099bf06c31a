"""The Fine-tune dock: paint a few strokes, and the model learns from them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QTimer
from qtpy.QtWidgets import QVBoxLayout

from napari_fovea.errors import FoveaError
from napari_fovea.widgets import layers
from napari_fovea.widgets.choice import Choice
from napari_fovea.widgets.dock import Dock
from napari_fovea.widgets.fine_tune_form import FineTuneForm, Said
from napari_fovea.widgets.job import Job, Jobs
from napari_fovea.widgets.learning import Shown, View, learn, told
from napari_fovea.widgets.next_place import NextPlace
from napari_fovea.widgets.plane_in_view import PlaneInView
from napari_fovea.widgets.projects import Projects
from napari_fovea.widgets.session import Session, session
from napari_fovea.widgets.steps import Steps
from napari_fovea.widgets.strokes import Pair, Watch, annotation_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from napari_fovea.models import Entry
    from napari_fovea.training.learned import Tuned
    from napari_fovea.training.tuner import Tuner
    from napari_fovea.widgets.layers import Region
    from napari_fovea.widgets.learning import History

_LIFT = 120  # ms after the brush lifts: strokes often come in pairs


class FineTuneDock(Dock):
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
        self.form = FineTuneForm(self.session, self._chosen_region)
        self._tuner: tuple[Entry, str, Tuner] | None = None
        self.base: Entry | None = None
        self._again = False
        self._jobs = Jobs()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.form)
        self.setMinimumWidth(330)
        self.choice = Choice(self, Watch(self._lifted, self._changed))
        self.plane = PlaneInView(self)
        self.next_place = NextPlace(self)
        self.steps = Steps(self)
        self.projects = Projects(self)
        self._lift = QTimer(self)
        self._lift.setSingleShot(True)
        self._lift.setInterval(_LIFT)
        self._lift.timeout.connect(self._learn_live)
        self._connect()
        self.open()

    def _connect(self) -> None:
        form = self.form
        form.train_button.clicked.connect(self.train)
        form.cancel_button.clicked.connect(self.cancel)
        form.diameter.told.connect(form.status.setText)
        form.images.currentIndexChanged.connect(lambda _: form.diameter.drop())

    def take_hold(self) -> None:
        """Follow what happens in the viewer and in other docks."""
        self.choice.take_hold()
        self.next_place.take_hold()
        self.session.changed.connect(self._model_changed)

    def let_go(self) -> None:
        """Leave the viewer alone: the dock is closed."""
        self._lift.stop()
        self.projects.keeper.close()
        self._disconnect()

    def abandon(self) -> None:
        """Let go of everything: the window was closed with the dock in it."""
        self.projects.keeper.abandon()
        self._disconnect()

    def _disconnect(self) -> None:
        """Follow nothing any more; the window may be gone already."""
        self._again = False
        self.choice.let_go()
        self.next_place.let_go()
        self.session.changed.disconnect(self._model_changed)
        self.form.diameter.quit()
        if self.job is not None:
            self.job.quit()

    # -- what is learned from ----------------------------------------------------

    def refresh(self) -> None:
        """List layers and models."""
        self.choice.list_layers()
        self._model_changed()

    def list_choices(self) -> None:
        """List the layers anew."""
        self.choice.list_layers()

    def layers_changed(self, lost: list[Pair]) -> None:
        """Look for work that belongs to new layers, and tell of those that are gone."""
        self.projects.look_for_lost_work()
        if lost and self.job is not None:
            self.form.say(
                f"{lost[0]} was removed while it is learned from: the model is kept, "
                "what was painted is taken as it was.",
                Said.WARNING,
            )

    def _model_changed(self) -> None:
        chosen = self.session.chosen
        if chosen is not None and chosen is not self.base:
            self.base = chosen
            self.form.name_classes(chosen.header.classes)
            self.form.diameter.drop()
            self.form.diameter.setValue(0)
            self._drop_job()
            self._tuner = None
            self.plane.forget()
            self.steps.begin(chosen.name)
        self.enable()

    def _drop_job(self) -> None:
        """Stop learning for another model than the one that is chosen now."""
        self._again = False
        if self.job is not None:
            self.job.quit()
            self.form.say(
                "Another model was chosen: what the last one was learning is dropped.",
                Said.WARNING,
            )

    def enable(self) -> None:
        """Enable the buttons of what can be done now."""
        form, running = self.form, self.job is not None
        form.diameter.show_model(self.session.chosen)
        ready = self.session.chosen is not None and bool(self.choice.pairs)
        form.train_button.setEnabled(ready and not running)
        form.cancel_button.setEnabled(running)
        form.new_button.setEnabled(form.images.count() > 0)
        form.next_button.setEnabled(ready and not running)
        form.open_project_button.setEnabled(not running)
        form.restore_button.setEnabled(not running)
        steps = self.steps
        form.save_button.setEnabled(steps.model is not None and not running)
        form.back_button.setEnabled(not running and len(steps.listed) > 1)
        form.anyway_button.setVisible(steps.candidate is not None and not running)

    # -- learning ----------------------------------------------------------------

    def _lifted(self, layer: Any) -> None:
        if self.form.live.isChecked() and self.form.instant.isChecked():
            self._lift.start()

    def _changed(self, layer: Any) -> None:
        self.next_place.begin_anew()
        self.projects.keeper.touch(layer)

    def _learn_live(self) -> None:
        if self.job is None:
            self.train()
        else:
            self._again = True  # what was painted since is learned right after

    def train(self) -> None:
        """Learn from what is painted; a job that is running is left alone."""
        entry, pairs, form = self.session.chosen, self.choice.pairs, self.form
        if self.job is not None or entry is None or not pairs:
            return
        try:
            how = form.how()
            names = form.names()
            size = form.diameter.value()
            annotations = [annotation_of(p, **how, diameter=size) for p in pairs]
            view = self.plane.of(pairs)
        except FoveaError as error:
            form.say(str(error), Said.ERROR)
            return
        mode = "instant" if form.instant.isChecked() else "thorough"
        settings = form.settings()
        self._again = False
        self.steps.candidate = None
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
        self.enable()
        self.job.start()

    def _tuner_for(self, entry: Entry) -> Tuner:
        """Take up what was looked at; called in the job's thread."""
        from napari_fovea.training.tuner import Tuner

        device = self.session.device
        if self._tuner is None or self._tuner[:2] != (entry, device):
            start = self.session.load(entry)
            tuner = Tuner(start, device=device)
            step = self.steps.in_use
            tuner.go_back(step.tuned if step is not None else None, start)
            self._tuner = (entry, device, tuner)
        return self._tuner[2]

    def _chosen_region(self) -> Region | None:
        """Tell what is measured: all of the image, as it is when it is learned from."""
        image = self.choice.image
        if image is None:
            return None
        return layers.region_of(image, self.viewer.dims, layers.WHOLE)

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
            self.plane.show(event.result)
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
            self.steps.take(tuned, shown)
        else:
            self.steps.candidate = (tuned, shown)
            self.form.say(
                "The model in use is kept. Paint more, or use the new one anyway.",
                Said.WARNING,
            )

    def complain(self, error: Exception) -> None:
        """Say what went wrong."""
        known = isinstance(error, FoveaError)
        told = str(error) if known else f"{type(error).__name__}: {error}"
        stopped = self.job is not None and self.job.cancelled
        self.form.say(told, Said.WARNING if known and stopped else Said.ERROR)

    def _on_finished(self) -> None:
        self.job = None
        self.form.progress.setValue(0)
        self.enable()
        if self._again:
            self._again = False
            self.train()

    def look(self) -> None:
        """Show what the model in use says of the plane, and get ready to learn."""
        pairs = self.choice.pairs
        if self.job is not None or self.session.chosen is None or not pairs:
            return
        view = self.plane.of(pairs)
        if view is not None:
            told = (
                "This is what the model says. Paint where it is wrong, at least two "
                "strokes of each class."
            )
            self.segment(view, lambda _: self.form.say(told), "Looking at the image…")

    def segment(self, view: View, then: Callable[[Any], None], told: str) -> None:
        """Show a plane by the model in use.

        Parameters
        ----------
        view : View
            The plane.
        then : callable
            Called with the result, once it is shown.
        told : str
            Said meanwhile.
        """
        entry = self.session.chosen
        assert entry is not None

        def make(cancelled: Any) -> Generator[Any, None, Any]:
            from napari_fovea.device import leaving_a_core

            yield from ()
            with leaving_a_core():
                return view.of(self._tuner_for(entry))

        def show(result: Any) -> None:
            self.plane.show(result)
            then(result)

        self._start(make, show)
        self.form.say(told)

    def accept(self, tuned: Tuned) -> None:
        """Let what was learned last be refitted from now on."""
        assert self._tuner is not None
        self._tuner[2].accept(tuned)

    def use(self, step: History) -> None:
        """Show what an earlier model says, and learn on from there."""
        entry, pairs = self.session.chosen, self.choice.pairs
        assert entry is not None
        view = self.plane.of(pairs) if pairs else None

        def make(cancelled: Any) -> Generator[Any, None, Any]:
            tuner = self._tuner_for(entry)
            tuner.go_back(step.tuned, self.session.load(entry))
            yield from ()
            return view.of(tuner) if view is not None else None

        self._start(make, self.plane.show)
        self.form.say(f"Back at {step.name}")

    def run(self, make: Any, then: Any) -> None:
        """Do something short beside what is going on."""

        def deliver(result: Any) -> None:
            if isalive(self):  # the window may have been closed meanwhile
                then(result)

        self._jobs.begin(make, deliver, self.complain)

    def changeEvent(self, event: Any) -> None:
        """Let the curve match the theme."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.PaletteChange, QEvent.Type.StyleChange):
            self.form.curve.match()
