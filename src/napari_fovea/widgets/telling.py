"""What docks say: in texts that fit, however long the names in them."""

from __future__ import annotations

import re
from typing import Any

from qtpy.QtWidgets import QLabel

_LONG = re.compile(r"[^\s/]{24}")
_MAY_BREAK = "\u200b"  # a space of no width


class Telling(QLabel):
    """A text that is wrapped, within names that are too long too.

    Qt wraps at spaces only, so that a long name would widen the dock or be cut off.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self.setWordWrap(True)
        self.setText(text)

    def setText(self, text: Any) -> None:
        """Show a text."""
        super().setText(_LONG.sub(rf"\g<0>{_MAY_BREAK}", text))

    def text(self) -> str:
        """Return the text as it was given."""
        return super().text().replace(_MAY_BREAK, "")


def duration(seconds: float) -> str:
    """Tell a time as it goes by."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def python_of(note: dict[str, Any], made: dict[str, Any]) -> str:
    """Code that makes the same result from the same array."""
    settings = {k: v for k, v in made["settings"].items() if v is not None}
    tiling = settings.pop("tiling", None)
    settings.pop("members", None)  # what those of an ensemble chose by themselves
    arguments = "".join(f", {k}={v!r}" for k, v in settings.items())
    imports = "from napari_fovea import complete, segment\n"
    if tiling is not None:
        arguments += f", tiling=Tiling(**{tiling!r})"
        imports += "from napari_fovea.inference import Tiling\n"
    axes = made["image"]["axes"]
    return (
        f"{imports}"
        f"result = complete(segment(image, {note['model_file']!r}, axes={axes!r}"
        f"{arguments}))"
    )
