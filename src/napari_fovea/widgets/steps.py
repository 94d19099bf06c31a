"""The models that took over, one after the other: gone back to, and saved."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import QFileDialog

from napari_fovea.widgets.job import call
from napari_fovea.widgets.learning import History

if TYPE_CHECKING:
    from napari_fovea.models import Model
    from napari_fovea.training.learned import Tuned
    from napari_fovea.widgets.fine_tune import FineTuneDock


class Steps:
    """Keeps the models of a Fine-tune dock.

    Parameters
    ----------
    dock : FineTuneDock
        Whose models they are.

    Attributes
    ----------
    listed : list of History
        The model that it all began with, and those that took over.
    current : int
        Which of them is in use.
    candidate : tuple or None
        A model that did not take over by itself, and what it shows.
    """

    def __init__(self, dock: FineTuneDock) -> None:
        self.dock = dock
        self.listed: list[History] = []
        self.current = -1
        self.candidate: tuple[Tuned, Any] | None = None
        form = dock.form
        form.anyway_button.clicked.connect(self._take_anyway)
        form.history.itemDoubleClicked.connect(self.go_back)
        form.back_button.clicked.connect(self.go_back)
        form.save_button.clicked.connect(self._ask_save)

    @property
    def in_use(self) -> History | None:
        """The step whose model is in use."""
        return self.listed[self.current] if self.listed else None

    @property
    def model(self) -> Model | None:
        """The fine-tuned model in use, if there is one."""
        step = self.in_use
        return step.tuned.model if step is not None and step.tuned is not None else None

    def begin(self, name: str) -> None:
        """Begin with a model that nothing was taught yet."""
        self.take_up([History(name)], 0)

    def take_up(self, listed: list[History], current: int) -> None:
        """Go on from steps that were made before."""
        self.listed, self.current, self.candidate = listed, current, None
        self.show()

    def show(self) -> None:
        """List the models one can go back to."""
        self.dock.form.show_history([s.name for s in self.listed], self.current)
        self.dock.enable()

    def take(self, tuned: Tuned, shown: Any) -> None:
        """Let a model take over; steps that came after the one in use are gone."""
        dock = self.dock
        dock.accept(tuned)
        instant = tuned.mode == "instant"
        again = instant and self.listed[self.current].live
        del self.listed[self.current + (0 if again else 1) :]
        count = len(self.listed)
        clock = time.strftime("%H:%M")
        name = f"{count} · {tuned.mode} · {tuned.verdict.after:.3f} · {clock}"
        live = instant and dock.form.live.isChecked()
        self.listed.append(History(name, tuned, live))
        self.current = count
        self.candidate = None
        dock.projects.keeper.step(self.listed[-1])
        self.show()
        made = tuned.model.provenance["fine_tuned"]
        dock.form.say(f"Learned in {made['seconds']:.1f} s on {made['device']}")
        if shown is not None:
            dock.plane.show(shown)

    def _take_anyway(self) -> None:
        if self.candidate is not None:
            self.take(*self.candidate)

    def go_back(self, item: Any = None) -> None:
        """Use the chosen model of the history again."""
        index = self.dock.form.history.currentRow()
        if self.dock.job is not None or not 0 <= index < len(self.listed):
            return
        if self.dock.session.chosen is None:
            return
        step = self.listed[index]
        self.current, self.candidate = index, None
        self.dock.projects.keeper.use(step)
        self.show()
        self.dock.use(step)

    def _ask_save(self) -> None:
        base = self.dock.base.name if self.dock.base else "model"
        path, _ = QFileDialog.getSaveFileName(
            self.dock,
            "Save the model",
            f"{base}-tuned.safetensors",
            "Models (*.safetensors)",
        )
        if path:
            self.save(path)

    def save(self, path: str | Path) -> None:
        """Save the model in use to a file, and offer it in all docks from now on."""
        model, dock = self.model, self.dock
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
            dock.session.offer_own(entry)
            dock.form.say(
                f"Saved {path.name}; it is in the Model dock as {entry.name}."
            )

        dock.run(call(write), then)
