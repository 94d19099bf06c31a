"""What docks share that follow the viewer: they let go of it when they are closed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref

from qtpy.compat import isalive
from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QWidget

if TYPE_CHECKING:
    from collections.abc import Callable


class Dock(QWidget):
    """A dock that follows the viewer while it is open, and only then."""

    def __init__(self) -> None:
        super().__init__()
        self.holds = False
        """Whether it follows the viewer."""
        self.destroyed.connect(partial(_abandon, ref(self)))

    def open(self) -> None:
        """Begin to follow the viewer; called at the end of the construction too."""
        if not self.holds:
            self.holds = True
            self.take_hold()
            self.refresh()

    def safely(self, act: Callable[..., Any]) -> Callable[..., None]:
        """Let a job call a function only while the dock is there.

        Qt disconnects methods of widgets that are gone, but no other functions.
        """

        def run(*told: Any) -> None:
            if isalive(self):
                act(*told)

        return run

    def take_hold(self) -> None:
        """Connect to what happens in the viewer and in other docks."""

    def let_go(self) -> None:
        """Disconnect, and stop what is going on."""

    def abandon(self) -> None:
        """Report nothing any more: the window was closed with the dock in it."""

    def refresh(self) -> None:
        """Look at what there is now."""

    def reset_choices(self, event: Any = None) -> None:
        """List layers anew; napari calls this when they change."""
        if self.holds:  # napari calls it for docks that were closed too
            self.list_choices()

    def list_choices(self) -> None:
        """List the layers that can be chosen."""

    def changeEvent(self, event: Any) -> None:
        """Let go of everything when napari takes the dock away."""
        super().changeEvent(event)
        if event.type() != QEvent.Type.ParentChange:
            return
        if self.parent() is not None:
            self.open()
        elif self.holds:
            self.holds = False
            self.let_go()


def _abandon(dock: ref[Dock], *_: Any) -> None:
    there = dock()
    if there is not None and there.holds:
        there.holds = False
        there.abandon()
