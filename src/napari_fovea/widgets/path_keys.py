"""Keys and clicks of the Focus path dock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import QShortcut

from napari_fovea.widgets.clicking import clicked

if TYPE_CHECKING:
    from collections.abc import Generator

    from napari.layers import Layer

    from napari_fovea.widgets.focus_path import FocusPathDock


class Pointing:
    """Space plays, arrows step, and a click on the image goes where it was seen best.

    Parameters
    ----------
    dock : FocusPathDock
        What is played.
    """

    def __init__(self, dock: FocusPathDock) -> None:
        self.dock = dock
        self._bound: Layer | None = None
        self._keys = {
            "Space": self._play,
            "Left": self._back,
            "Right": self._on,
        }
        # In the dock itself, whatever has the focus there.
        for key, act in self._keys.items():
            shortcut = QShortcut(QKeySequence(key), dock)
            shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
            shortcut.activated.connect(act)

    def take_hold(self) -> None:
        """Take clicks; keys only while there is something to play."""
        self.dock.viewer.mouse_drag_callbacks.append(self._clicked)

    def let_go(self) -> None:
        """Give clicks and keys back."""
        self.bind(None)
        callbacks = self.dock.viewer.mouse_drag_callbacks
        if self._clicked in callbacks:
            callbacks.remove(self._clicked)

    def bind(self, layer: Layer | None) -> None:
        """Take the keys of the viewer and of the active layer; None gives them back.

        Keys of a layer come before those of the viewer.
        """
        if layer is self._bound:
            return
        viewer: Any = self.dock.viewer
        held = [viewer] if self._bound is None else [viewer, self._bound]
        wanted = [] if layer is None else [viewer, layer]
        for key, act in self._keys.items():
            for holder in held:
                if act in holder.keymap.values():  # else somebody has it now
                    holder.bind_key(key, None)
            for holder in wanted:
                holder.bind_key(key, act, overwrite=True)
        self._bound = layer

    def _play(self, of: Any = None) -> None:
        self.dock.toggle()

    def _back(self, of: Any = None) -> None:
        self.dock.move(-1)

    def _on(self, of: Any = None) -> None:
        self.dock.move(1)

    def _clicked(self, viewer: Any, event: Any) -> Generator[None, None, None]:
        dock = self.dock
        if dock.layers is None or not dock.form.click.isChecked():
            return
        clean = yield from clicked(viewer, event)
        if clean and dock.layers is not None and dock.layers.there():
            dock.go_to_place(dock.layers.place(event.position))
