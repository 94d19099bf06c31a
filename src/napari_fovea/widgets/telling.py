"""Texts that fit into a dock, however long the names in them."""

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
