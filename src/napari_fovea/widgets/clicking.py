"""A click on the canvas, told from a drag."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator

HARMLESS = ("pan_zoom", "transform", "select", "direct")
"""Modes of layers in which a click or a key of ours spoils nothing."""


def clicked(viewer: Any, event: Any) -> Generator[None, None, bool]:
    """Follow a press of the mouse; for use in ``mouse_drag_callbacks``.

    Returns
    -------
    bool
        Whether it was a plain click with the left button that paints nothing.
    """
    mode = str(getattr(viewer.layers.selection.active, "mode", "pan_zoom"))
    if mode not in HARMLESS or event.button != 1 or event.modifiers:
        return False
    dragged = False
    yield
    while event.type == "mouse_move":
        dragged = True
        yield
    return not dragged
