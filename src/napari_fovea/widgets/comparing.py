"""How shown attention maps lie: above each other, side by side, or blinking."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QTimer

from napari_fovea.widgets.attention_form import BESIDE, BLINK, OFF

if TYPE_CHECKING:
    from napari_fovea.widgets.attention import AttentionDock

_BLINK = 600  # ms that each of two maps is on show


class Comparison:
    """Lays out the maps that are ticked.

    Parameters
    ----------
    dock : AttentionDock
        Whose maps are shown.
    """

    def __init__(self, dock: AttentionDock) -> None:
        self.dock = dock
        self.viewer = dock.viewer
        self._order: list[str] = []
        self._view: tuple[tuple[float, ...], float] | None = None
        self._blink = QTimer(dock)
        self._blink.setInterval(_BLINK)
        self._blink.timeout.connect(self._blinked)
        dock.form.compare.currentTextChanged.connect(lambda _: self.arrange())
        dock.form.opacity.valueChanged.connect(self._opacity_changed)

    def stop(self) -> None:
        """Blink no more."""
        self._blink.stop()

    def leave(self) -> None:
        """Lay the maps above each other again, and look where the user looked."""
        self.stop()
        if self.dock.shown is not None:
            self.dock.shown.together()
        self._look_back()

    def ticked(self, name: str, shown: bool) -> None:
        """Remember in which order maps were ticked."""
        self._order = [n for n in self._order if n != name]
        if shown:
            self._order.append(name)

    def visible(self) -> list[str]:
        """List the maps that are on show, the one ticked last at the end."""
        ticked = self.dock.form.tree.shown
        known = [n for n in self._order if n in ticked]
        known = [n for n in ticked if n not in known] + known
        return [n for n in known if n in self.dock.maps]

    def arrange(self) -> None:
        """Lay maps above each other, or the two that were ticked last to compare."""
        self.leave()
        shown = self.dock.shown
        if shown is None:
            return
        how, names = self.dock.form.compare.currentText(), self.visible()
        for name in names:
            layer = shown.layer(name)
            if layer is not None:
                layer.visible = True
        if how != OFF:  # two are compared, whatever else is ticked
            for name in names[:-2]:
                shown.hide(name)
            names = names[-2:]
        if len(names) > 1 and how == BESIDE:
            shown.beside(names[-1])
            camera = self.viewer.scene.camera
            self._view = (tuple(camera.center), camera.zoom)
            self.viewer.reset_view()
        elif len(names) > 1 and how == BLINK:
            self._blink.start()
            self._blinked()
        elif how in (BESIDE, BLINK) and names:
            self.dock.form.say("Tick two maps to compare them.")
        self._select(names)
        self.dock.enable()

    def _look_back(self) -> None:
        """Look again where the user looked before two maps lay side by side."""
        if self._view is not None:
            camera = self.viewer.scene.camera
            camera.center, camera.zoom = self._view
            self._view = None

    def _select(self, names: list[str]) -> None:
        """Select the maps: napari tells the values of selected layers in its bar."""
        found = [self.dock.shown.layer(n) for n in names] if self.dock.shown else []
        there = [x for x in found if x is not None]
        if there:
            selection = self.viewer.layers.selection
            selection.clear()
            selection.update(there)
            selection.active = there[-1] if len(there) == 1 else None

    def _blinked(self) -> None:
        names = self.visible()[-2:]
        found = [self.dock.shown.layer(n) for n in names] if self.dock.shown else []
        pair = [x for x in found if x is not None]
        if len(pair) < 2:
            self.arrange()
            return
        first = pair[0].visible
        pair[0].visible, pair[1].visible = not first, first

    def _opacity_changed(self, percent: int) -> None:
        if self.dock.shown is None:
            return
        found = [self.dock.shown.layer(name) for name in self.dock.maps]
        for layer in (*found, self.dock.shown.saliency):
            if layer is not None:
                layer.opacity = percent / 100
