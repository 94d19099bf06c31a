"""Projects, and what a crash left behind: saved, opened, and brought back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import QFileDialog

from napari_fovea.errors import FoveaError
from napari_fovea.widgets.fine_tune_form import Said
from napari_fovea.widgets.job import call
from napari_fovea.widgets.keeping import (
    Keeper,
    bring_back,
    history_of,
    lost_work,
    matches,
    project_of,
)
from napari_fovea.widgets.strokes import images_in

if TYPE_CHECKING:
    from napari_fovea.project import Project, Strokes, Unfinished
    from napari_fovea.widgets.fine_tune import FineTuneDock
    from napari_fovea.widgets.learning import History


class Projects:
    """Keeps the work of a Fine-tune dock, and brings it back.

    Parameters
    ----------
    dock : FineTuneDock
        Whose work it is.
    """

    def __init__(self, dock: FineTuneDock) -> None:
        self.dock = dock
        self.notice: tuple[Unfinished, list[Any]] | None = None
        self._taken: set[Path] = set()
        self._images_seen: set[str] = set()
        self.keeper = Keeper(lambda: dock.choice.pairs, self.about)
        self.keeper.failed.connect(lambda told: dock.form.say(told, Said.ERROR))
        form = dock.form
        form.keep_project_button.clicked.connect(self.ask_save)
        form.open_project_button.clicked.connect(self.ask_open)
        form.restore_button.clicked.connect(self.restore)
        form.forget_button.clicked.connect(self.forget)

    def about(self) -> tuple[str, dict[int, str], dict[str, Any]]:
        """Tell base model, classes and settings, as they are kept."""
        try:
            names = self.dock.form.names()
        except FoveaError:
            names = {}
        base = self.dock.base.name if self.dock.base is not None else ""
        settings = self.dock.form.state()
        if self.dock.base is not None:
            settings["base_file"] = str(self.dock.base.path)
        return base, names, settings

    def ask_save(self) -> None:
        """Ask for a folder and save the project there."""
        folder = QFileDialog.getExistingDirectory(
            self.dock, "Save the project in a folder"
        )
        if folder:
            self.save(folder)

    def save(self, folder: str | Path) -> None:
        """Write strokes, classes, settings and models to a folder."""
        pairs, about = self.dock.choice.pairs, self.about()
        steps, current = list(self.dock.steps.listed), self.dock.steps.current

        def write() -> None:
            from napari_fovea.project import save_project

            save_project(folder, *project_of(pairs, steps, current, about))

        def then(result: None) -> None:
            self.dock.form.say(f"Saved the project in {folder}")

        self.dock.run(call(write), then)

    def ask_open(self) -> None:
        """Ask for a folder and open the project in it."""
        folder = QFileDialog.getExistingDirectory(self.dock, "Open a project's folder")
        if folder:
            self.open(folder)

    def open(self, folder: str | Path) -> None:
        """Take up what was saved in a folder."""
        layers = images_in(self.dock.viewer)
        images = [_facts(layer) for layer in layers]

        def read() -> Any:
            from napari_fovea.project import identify, open_project

            project = open_project(folder)
            ids = [identify(*image) for image in images]
            return project, matches(project, ids)

        def then(found: Any) -> None:
            project, places = found
            self._take_up(Path(folder), project, _at(places, layers))

        self.dock.run(call(read), then)

    def look_for_lost_work(self) -> None:
        """Offer strokes that a crash left behind, once for each image."""
        layers = images_in(self.dock.viewer)
        here = {str(x.unique_id) for x in layers}
        if self.dock.choice.listed or (here and here <= self._images_seen):
            return
        self._images_seen |= here
        images, taken = [_facts(layer) for layer in layers], set(self._taken)

        def then(found: Any) -> None:
            self._offer_lost_work(found, layers)

        self.dock.run(call(lambda: lost_work(images, but=taken)), then)

    def _offer_lost_work(self, found: Any, layers: list[Any]) -> None:
        if found is None or found[0].folder in self._taken:
            self.notice = None
            self.dock.form.offer_work("")
            return
        work, places = found[0], _at(found[1], layers)
        self.notice = work, places
        names = ", ".join(sorted({s.image.name for s in work.project.strokes}))
        when = work.changed.strftime("%d %b, %H:%M")
        told = f"There are unsaved strokes on {names} from {when}."
        if all(place is None for place in places):
            told += " The image is not open yet."
        self.dock.form.offer_work(told)

    def restore(self) -> None:
        """Bring back what was offered."""
        if self.notice is None:
            return
        work, places = self.notice
        self.dock.form.offer_work("")
        self.notice = None
        self._take_up(work.folder, work.project, places, journal=True)

    def forget(self) -> None:
        """Throw away what was offered."""
        if self.notice is None:
            return
        folder = self.notice[0].folder
        self.notice = None
        self.dock.form.offer_work("")

        def remove() -> None:
            from napari_fovea.project import discard

            discard(folder)

        self.dock.run(call(remove), lambda _: self._look_again())

    def _look_again(self) -> None:
        self._images_seen = set()
        self.look_for_lost_work()

    def _take_up(
        self,
        folder: Path,
        project: Project,
        places: list[Any],
        *,
        journal: bool = False,
    ) -> None:
        """Lay strokes on their images, and go on with the models."""
        missing = []
        pairs = []
        if journal:
            self._taken.add(folder)
        for strokes, place in zip(project.strokes, places, strict=True):
            there = place in self.dock.viewer.layers
            image = place if there else self._open(strokes)
            if image is None:
                missing.append(strokes.image.path or strokes.image.name)
                continue
            count = max(2, len(project.classes))
            pairs.append(bring_back(self.dock.viewer, image, strokes, classes=count))
        if missing:
            self.dock.form.say(
                f"{', '.join(missing)} is not open, or not as it was; open it and "
                "bring the strokes back then: they are kept.",
                Said.WARNING,
            )
            self._taken.discard(folder)
            if not pairs:
                return
        file = project.settings.get("base_file")
        known = [e for e in self.dock.session.entries if e.name == project.base]
        known.sort(key=lambda e: str(e.path) != file)
        entry = known[0] if known else None
        if entry is not None:
            self.dock.session.choose(entry)
        self.dock.form.set_state(project.settings, project.classes)
        self.dock.choice.listed = pairs
        self.dock.choice.list_layers()

        def read() -> list[History]:
            return history_of(folder, project)

        def then(history: list[History]) -> None:
            if history:
                self.dock.steps.take_up(history, max(0, project.current))
                if self.dock.steps.current > 0:
                    self.dock.steps.go_back()
            for pair in pairs:
                self.keeper.touch(pair.labels)
            count = len([s for s in history if s.tuned is not None])
            self.dock.form.say(
                f"Brought back {len(pairs)} labels layer(s) and {count} model(s)."
            )
            if journal and not missing:
                self._let_go(folder)

        self.dock.run(call(read), then)

    def _let_go(self, folder: Path) -> None:
        """Remove an old journal as soon as a new one holds the same."""
        keeper, all_steps = self.keeper, self.dock.steps
        steps = [s for s in all_steps.listed if s.tuned is not None]

        def move() -> None:
            from napari_fovea.project import discard

            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                # The strokes are handed over once the image is known again.
                if keeper.kept and keeper.journal.flush():
                    discard(folder)
                    return
                time.sleep(0.1)

        for step in steps:
            keeper.step(step)
        if all_steps.in_use is not None:
            keeper.use(all_steps.in_use)
        self.dock.run(call(move), lambda _: None)

    def _open(self, strokes: Strokes) -> Any:
        """Open the image that strokes were painted on, if it is where it was."""
        from napari_fovea.project import identify, same

        path = strokes.image.path
        if path is None or not Path(path).exists():
            return None
        try:
            opened = self.dock.viewer.open(path)
        except Exception as error:  # every reader has its own kinds
            self.dock.complain(error)
            return None
        for layer in opened:
            if same(identify(layer.data, layer.name), strokes.image):
                return layer
        return None


def _facts(layer: Any) -> tuple[Any, str, str | None]:
    """Take what `identify` looks at."""
    data = layer.data[0] if layer.multiscale else layer.data
    return data, layer.name, layer.source.path


def _at(places: list[int | None], layers: list[Any]) -> list[Any]:
    """Layers at places of a list; the list that the viewer has may change."""
    return [layers[place] if place is not None else None for place in places]
