"""The focus paths that can be replayed: of results, and of files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import QFileDialog

from napari_fovea.widgets import layers
from napari_fovea.widgets.job import Job, call
from napari_fovea.widgets.path_choice import Choice, choices, fits, images, size_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.layers import Image

    from napari_fovea.widgets.focus_path import FocusPathDock


class PathShelf:
    """Lists paths and images, opens files, and says what does not fit.

    Parameters
    ----------
    dock : FocusPathDock
        Which is told to load what is chosen.
    """

    def __init__(self, dock: FocusPathDock) -> None:
        self.dock = dock
        self.form = dock.form
        self.viewer = dock.viewer
        self._opened: list[Choice] = []
        self.jobs: list[Job] = []
        self._awaited: str | None = None
        self.form.paths.currentIndexChanged.connect(self._chosen_by_user)
        self.form.images.currentIndexChanged.connect(lambda _: dock.load())
        self.form.open_button.clicked.connect(self._ask_for_file)
        self.form.fit_button.clicked.connect(self.scale_to_image)

    def stop(self) -> None:
        """Stop for good: the dock is closed."""
        for job in self.jobs:
            job.quit()

    @property
    def busy(self) -> bool:
        """Whether a file is being read, or an image compared."""
        return bool(self.jobs)

    @property
    def choice(self) -> Choice | None:
        """The path that is chosen."""
        return self.form.paths.currentData()

    @property
    def image(self) -> Image | None:
        """The image layer that it is laid on."""
        wanted = self.form.images.currentData()
        found = images(self.viewer.layers)
        return next((x for x in found if str(x.unique_id) == wanted), None)

    def list_paths(self) -> None:
        """List the paths of results and opened files, and the images."""
        form, chosen = self.form, self.choice
        offered = [*choices(self.viewer.layers), *self._opened]
        form.paths.blockSignals(True)
        form.paths.clear()
        for choice in offered:
            form.paths.addItem(choice.name, choice)
        kept = _found(offered, lambda c: chosen is not None and c.path is chosen.path)
        # Else what a new run has put in its place; else the newest of all.
        new = _found(offered, lambda c: chosen is not None and c.name == chosen.name)
        # A run that begins takes its layer's path away until it ends.
        back = _found(offered, lambda c: c.name == self._awaited)
        if kept is None and new is None and chosen is not None:
            self._awaited = chosen.name
        if back is not None:
            self._awaited = None
        places = (back, kept, new, len(offered) - 1)
        place = next(i for i in places if i is not None)
        form.paths.setCurrentIndex(place)
        form.paths.blockSignals(False)
        image = form.images.currentData()
        form.images.blockSignals(True)
        form.images.clear()
        for layer in images(self.viewer.layers):
            form.images.addItem(layer.name, str(layer.unique_id))
        form.images.setCurrentIndex(max(0, form.images.findData(image)))
        form.images.blockSignals(False)
        if not offered:
            self.dock.unload()
            form.say(
                "Segment an image with a retina model, or open a saved path, to see "
                "where it looked."
            )
        elif chosen is None or offered[place].path is not chosen.path:
            self._chosen()

    def _chosen_by_user(self, index: int) -> None:
        self._awaited = None
        self._chosen()

    def _chosen(self, index: int = 0) -> None:
        """Choose the image that the path says it was walked on, and load it."""
        choice = self.choice
        if choice is None:
            return
        form = self.form
        form.images.blockSignals(True)
        named = form.images.findData(str(choice.image.get("id")))
        if named < 0 and choice.image.get("id") is None:
            named = form.images.findText(str(choice.image.get("name")))
        active = self.viewer.layers.selection.active
        current = form.images.findData(str(getattr(active, "unique_id", "")))
        if named >= 0 and (choice.file is None or self._fits(choice, named)):
            form.images.setCurrentIndex(named)
        elif current >= 0:
            form.images.setCurrentIndex(current)
        form.images.blockSignals(False)
        self.dock.load()

    def _fits(self, choice: Choice, index: int) -> bool:
        wanted = self.form.images.itemData(index)
        found = images(self.viewer.layers)
        return any(str(x.unique_id) == wanted and fits(choice, x) for x in found)

    def _ask_for_file(self) -> None:
        file, _ = QFileDialog.getOpenFileName(
            self.dock, "Open a focus path", "", "Focus paths (*.focus);;All files (*)"
        )
        if file:
            self.open_file(file)

    def open_file(self, file: str | Path) -> None:
        """Add a saved path to the list and choose it.

        Parameters
        ----------
        file : str or Path
            A focus path. What is wrong with it, if anything, is shown in the dock,
            and what is replayed stays as it was.
        """

        def read() -> Any:
            from napari_fovea.retina import load_path

            return load_path(file)

        self._start(call(read), partial(self._opened_file, Path(file)))

    def _opened_file(self, file: Path, recorded: Any) -> None:
        choice = Choice(
            file.name,
            recorded.path,
            recorded.image,
            recorded.provenance,
            str(file),
        )
        if not len(recorded.path):
            self.form.say(f"{file.name} holds a path without fixations.", wrong=True)
            return
        self._opened = [c for c in self._opened if c.file != choice.file]
        self._opened.append(choice)
        self.list_paths()
        self._choose(choice)

    def _choose(self, choice: Choice) -> None:
        """Choose one of several that may have the same name."""
        box = self.form.paths
        index = next(i for i in range(box.count()) if box.itemData(i) is choice)
        if index == box.currentIndex():
            self._chosen()
        box.setCurrentIndex(index)

    def _start(self, make: Any, then: Any) -> None:
        job = Job(make)
        self.jobs.append(job)
        job.returned.connect(self.dock.safely(then))
        job.errored.connect(self.dock.complain)
        job.finished.connect(partial(self.jobs.remove, job))
        job.start()

    def offer_to_scale(self, choice: Choice, image: Image) -> None:
        """Say that a path is of another image, and offer to stretch it."""
        mine, size = choice.path.image_shape or (0, 0), size_of(image)
        axes = "" if len(choice.path.lead) in (0, image.ndim - 2) else " in a stack"
        self.form.say(
            f"This path was walked on an image of {mine[0]}×{mine[1]} pixels{axes}; "
            f"{image.name!r} has {size[0]}×{size[1]}: choose its own image"
            + ("." if axes else ", or scale the path to this one."),
            wrong=True,
        )
        self.form.fit_button.setVisible(not axes)

    def compare(self, choice: Choice, image: Image) -> None:
        """Say so where the path of a file was walked on other pixels."""
        digest = choice.image.get("digest")
        if digest is None:
            return
        data, name = layers.array_of(image), image.name

        def look() -> bool:
            from napari_fovea.project.identity import identify

            return identify(data, name).digest == digest

        def tell(same: bool) -> None:
            if not same and self.choice is choice:
                self.form.say(
                    f"This path was walked on another image, "
                    f"{choice.image.get('name')!r}; it is shown on {image.name!r} "
                    "all the same, as both have the same size.",
                    wrong=True,
                )

        self._start(call(look), tell)

    def scale_to_image(self) -> None:
        """Stretch the chosen path over the chosen image."""
        choice, image = self.choice, self.image
        if choice is None or image is None:
            return
        path = choice.path.laid_on(size_of(image))
        known = {k: v for k, v in choice.image.items() if k == "name"}
        name = f"{choice.name} on {image.name}"
        fitted = Choice(name, path, known, choice.provenance, f"{name} {choice.file}")
        self._opened = [c for c in self._opened if c.file != fitted.file]
        self._opened.append(fitted)
        chosen = str(image.unique_id)
        self.list_paths()
        self.form.paths.blockSignals(True)
        self._choose(fitted)
        self.form.paths.blockSignals(False)
        self.form.images.setCurrentIndex(self.form.images.findData(chosen))
        self.dock.load()


def _found(offered: list[Choice], fits: Callable[[Choice], bool]) -> int | None:
    """Place of the first choice that fits."""
    return next((i for i, c in enumerate(offered) if fits(c)), None)
