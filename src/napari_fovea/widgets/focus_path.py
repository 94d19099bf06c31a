"""The Focus path dock: watch again where the retina looked, and what it saw."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QVBoxLayout

from napari_fovea.errors import FoveaError
from napari_fovea.widgets.clicking import HARMLESS
from napari_fovea.widgets.dock import Dock
from napari_fovea.widgets.focus_path_form import FocusPathForm
from napari_fovea.widgets.path_choice import (
    Choice,
    about,
    fits,
    hide_whole,
    offset_of,
    plane_in_view,
    tell,
)
from napari_fovea.widgets.path_keys import Pointing
from napari_fovea.widgets.path_layers import PathLayers
from napari_fovea.widgets.path_map import MapMaker
from napari_fovea.widgets.path_saving import Saving
from napari_fovea.widgets.path_shelf import PathShelf
from napari_fovea.widgets.player import Player
from napari_fovea.widgets.session import Session, session

if TYPE_CHECKING:
    from napari.layers import Image

    from napari_fovea.retina import FocusPath

_TELL = 0.25  # seconds between texts while it plays
_LONGEST = 20.0  # seconds that a replay takes at most, unless the user is patient


class FocusPathDock(Dock):
    """Replay a focus path on its image.

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
        self.form = FocusPathForm()
        self.player = Player(self)
        self.maps = MapMaker(self)
        self.layers: PathLayers | None = None
        self.path: FocusPath | None = None
        self.plane: int | None = None
        self._seen: dict[str, bool] = {}
        self._doubts: list[int] = []
        self._laying = False
        self._ended = False
        self._told = 0.0
        # Layers must not come while others go, and one move of a slider tells twice.
        self._moved = QTimer(self)
        self._moved.setSingleShot(True)
        self._moved.setInterval(0)
        self._moved.timeout.connect(self._show_plane)
        self.shelf = PathShelf(self)
        self.pointing = Pointing(self)
        self.saving = Saving(self)
        layout = QVBoxLayout(self)
        layout.addWidget(self.form)
        self.setMinimumWidth(300)
        self._connect()
        self.open()

    def _connect(self) -> None:
        form, player = self.form, self.player
        form.play_button.clicked.connect(self.toggle)
        form.back_button.clicked.connect(partial(self.move, -1))
        form.on_button.clicked.connect(partial(self.move, 1))
        form.doubt_button.clicked.connect(self.go_to_doubt)
        form.slider.valueChanged.connect(self._slid)
        form.speed.valueChanged.connect(self._speed_changed)
        form.loop.toggled.connect(partial(setattr, player, "loop"))
        form.map.toggled.connect(self._map_toggled)
        player.stepped.connect(self._show)
        player.toggled.connect(self._toggled)
        self.maps.made.connect(self._show_map)
        self.maps.failed.connect(self.complain)
        form.steps_per_second = player.speed

    def take_hold(self) -> None:
        """Follow what happens in the viewer."""
        events = self.viewer.layers.events
        events.inserted.connect(self._inserted)
        events.removed.connect(self._removed)
        events.renamed.connect(self._list)
        self.viewer.dims.events.current_step.connect(self._plane_changed)
        self.viewer.dims.events.ndisplay.connect(self._display_changed)
        self.pointing.take_hold()
        self.session.pointed.connect(self._pointed)
        for layer in self.viewer.layers:
            self._listen(layer)

    def let_go(self) -> None:
        """Leave the viewer alone: the dock is closed."""
        self.unload()
        self.saving.stop()
        events = self.viewer.layers.events
        events.inserted.disconnect(self._inserted)
        events.removed.disconnect(self._removed)
        events.renamed.disconnect(self._list)
        self.viewer.dims.events.current_step.disconnect(self._plane_changed)
        self.viewer.dims.events.ndisplay.disconnect(self._display_changed)
        for layer in self.viewer.layers:
            layer.events.metadata.disconnect(self._list)
        self.pointing.let_go()
        self.session.pointed.disconnect(self._pointed)
        self.shelf.stop()

    def refresh(self) -> None:
        """List paths and images, and show again what was shown before."""
        self.shelf.list_paths()
        if self.path is None and self.shelf.choice is not None:
            self.load()

    # -- what can be replayed --------------------------------------------------------

    def abandon(self) -> None:
        """Report nothing any more: the window is gone."""
        self.session.pointed.disconnect(self._pointed)
        for job in (*self.shelf.jobs, self.saving.job, self.maps.job):
            if job is not None:
                job.quit()

    def list_choices(self) -> None:
        """List paths and images anew."""
        self._list()

    def _listen(self, layer: Any) -> None:
        # A run that ends leaves its path in the metadata of a layer that is there.
        layer.events.metadata.connect(self._list)

    def _inserted(self, event: Any) -> None:
        self._listen(event.value)
        self._list()

    def _list(self, event: Any = None) -> None:
        if not self._laying:  # layers of the replay itself are no news
            self.shelf.list_paths()

    def complain(self, error: Exception) -> None:
        """Show what went wrong."""
        name = "" if isinstance(error, FoveaError) else f"{type(error).__name__}: "
        self.form.say(f"{name}{error}", wrong=True)

    # -- loading ---------------------------------------------------------------------

    def load(self) -> None:
        """Lay the chosen path on the chosen image, and stand at its end."""
        choice, image = self.shelf.choice, self.shelf.image
        self.unload()
        self._ended = False
        if choice is None:
            return
        if image is None:
            self.form.say("Open the image that this path was walked on.")
            return
        if self.viewer.dims.ndisplay > 2:
            self.form.say("The replay is flat: switch the view to 2D to see it.")
            return
        if not fits(choice, image):
            self.shelf.offer_to_scale(choice, image)
            return
        self.form.explain_colours(choice.path.classes)
        self._load_plane(choice, image)
        hide_whole(self.viewer.layers, choice)
        self._select_retina()
        if choice.file is not None:
            self.shelf.compare(choice, image)

    def _select_retina(self) -> None:
        """Select the retina's layer, unless the user is painting in another."""
        selection = self.viewer.layers.selection
        mode = str(getattr(selection.active, "mode", "pan_zoom"))
        if self.layers is not None and mode in HARMLESS:
            selection.active = self.layers.layer("retina")

    def _load_plane(self, choice: Choice, image: Image) -> None:
        form = self.form
        self.plane = plane_in_view(choice, image, self.viewer.dims)
        path = choice.path.of_plane(self.plane) if self.plane is not None else None
        if path is None or not len(path):
            self.unload()
            form.say("No fixation of this path lies on the plane in view.")
            return
        try:
            shape = self.maps.load(path)
        except FoveaError as error:
            self.unload()
            self.complain(error)
            return
        active = self.viewer.layers.selection.active
        self._laying = True
        try:
            shown = PathLayers(self.viewer, image)
            shown.load(path, offset_of(choice, image), shape=shape)
            shown.bring_back(self._seen)
        finally:
            self._laying = False
            self.viewer.layers.selection.active = active  # new layers have taken it
        self.layers, self.path = shown, path
        self.player.load(len(path))
        self._map_toggled(self.form.map.isChecked())
        self.pointing.bind(shown.layer("retina"))
        self._doubts = []
        needed = len(path) / _LONGEST
        if needed > form.steps_per_second:
            form.steps_per_second = needed
        form.slider.blockSignals(True)
        form.slider.setRange(0, len(path) - 1)
        form.slider.setPageStep(max(1, len(path) // 20))
        form.slider.blockSignals(False)
        form.fit_button.hide()
        form.enable(True)
        form.say(about(choice, path))
        # All of it, as the result shows it; playing begins at the first fixation.
        self.player.go(len(path) - 1)

    def unload(self) -> None:
        """Show nothing; layers are kept for the next path."""
        shown = self.layers
        self.layers = self.path = self.plane = None
        self.pointing.bind(None)
        self.player.load(0)
        self.maps.stop()
        if shown is not None:
            self._seen = shown.put_away()
        self.form.enable(False)
        self.form.fit_button.hide()
        self.form.told.setText("")

    def _plane_changed(self, event: Any = None) -> None:
        self._moved.start()

    def _show_plane(self) -> None:
        """Show the path of the plane that has come into view."""
        if self._ended or not self.holds:
            return
        choice, image = self.shelf.choice, self.shelf.image
        if choice is None or image is None or image.ndim < 3:
            return
        if self.viewer.dims.ndisplay > 2 or not fits(choice, image):
            return
        if plane_in_view(choice, image, self.viewer.dims) != self.plane:
            playing = self.player.playing
            self.unload()
            self._load_plane(choice, image)
            if playing and self.path is not None:
                self.player.play()

    def _display_changed(self, event: Any = None) -> None:
        """Stop in 3D, where napari cannot change flat shapes; go on in 2D."""
        if self.viewer.dims.ndisplay > 2 and self.layers is None:
            return
        self.load()

    def _removed(self, event: Any) -> None:
        """Stop and say why, where the image or the retina has gone."""
        if self.layers is not None and not self.layers.there():
            gone = self.layers.source
            lost = gone not in self.viewer.layers
            which = f"the image {gone.name!r}" if lost else "the layer of the retina"
            playing = self.player.playing
            self.unload()
            stopped = "The replay stopped" if playing else "The replay ended"
            self._ended = True
            self.shelf.list_paths()
            self.form.say(f"{stopped}: {which} was removed.", wrong=True)
            return
        self.shelf.list_paths()

    # -- playing ---------------------------------------------------------------------

    def toggle(self) -> None:
        """Play, or pause."""
        if self.path is None:
            return
        if self.player.playing:
            self.player.pause()
        else:
            self.player.play()

    def move(self, by: int, *_: Any) -> None:
        """Pause, and go some fixations on or back."""
        if self.path is not None:
            self.player.pause()
            self.player.go(self.player.step + by)

    def go_to_doubt(self) -> None:
        """Go to the least sure fixation, and with every press to the next."""
        if self.path is None:
            return
        self.player.pause()
        if not self._doubts:
            self._doubts = np.argsort(-self.path.entropies, kind="stable").tolist()
        self.player.go(self._doubts.pop(0))

    def _pointed(self, path: FocusPath, step: int) -> None:
        """Go to a fixation that another dock tells of, if it is of this path."""
        mine = self.path
        if mine is None or len(mine) != len(path):
            return
        if np.array_equal(mine.corners, path.corners):
            self.player.pause()
            self.player.go(step)

    def go_to_place(self, point: tuple[float, float]) -> None:
        """Go to the fixation that saw a place of the image best.

        Parameters
        ----------
        point : tuple of float
            Row and column in the scanned region, in pixels.
        """
        if self.path is None:
            return
        step = self.path.best_look(point)
        if step is None:
            self.form.say("No fixation saw this place.")
            return
        self.player.pause()
        self.player.go(step)

    def _slid(self, step: int) -> None:
        if step != self.player.step:
            self.player.go(step)

    def _speed_changed(self) -> None:
        speed = self.form.steps_per_second
        self.player.speed = speed
        shown = f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}"
        self.form.pace.setText(f"{shown} /s")

    def _toggled(self, playing: bool) -> None:
        self.form.playing(playing)
        if not playing and self.path is not None:
            self._show(self.player.step)

    def _show(self, step: int) -> None:
        if self.layers is None or self.path is None:
            return
        playing = self.player.playing
        self.layers.show(step, full=not playing)
        if self._with_map():
            self.maps.ask(step, hurry=not playing)
        form = self.form
        now = time.perf_counter()
        # Text costs a repaint of the window, and nobody reads it so fast.
        if not playing or now - self._told > _TELL:
            self._told = now
            form.slider.blockSignals(True)
            form.slider.setValue(step)
            form.slider.blockSignals(False)
            form.told.setText(tell(self.path, step))
        if form.follow.isChecked():
            self._follow(step)

    def _follow(self, step: int) -> None:
        assert self.layers is not None
        assert self.path is not None
        world = self.layers.world(self.path.centres[step])
        camera = self.viewer.scene.camera
        camera.center = (*tuple(camera.center)[:-2], *world)

    # -- the map ---------------------------------------------------------------------

    def _with_map(self) -> bool:
        return self.form.map.isChecked() and self.maps.ready

    def _map_toggled(self, shown: bool) -> None:
        layer = self.layers.layer("replayed map") if self.layers else None
        if layer is not None:
            layer.visible = shown and self.maps.ready
        if shown and self.path is not None and self.maps.ready:
            self.maps.ask(self.player.step)

    def _show_map(self, painted: Any, scale: tuple[float, float]) -> None:
        if self.layers is not None:
            self.layers.show_map(painted, scale)
