"""The command line: the same functions as the docks, without a window."""

from __future__ import annotations

import sys

from napari_fovea.cli import (
    demonstration,
    evaluating,
    finetuning,
    focusing,
    segmenting,
    training,
)
from napari_fovea.cli.common import app, complain
from napari_fovea.errors import FoveaError

__all__ = [
    "app",
    "demonstration",
    "evaluating",
    "finetuning",
    "focusing",
    "main",
    "segmenting",
    "training",
]


def main() -> None:
    """Run the command line; bad input ends in one sentence and exit code 1."""
    try:
        app()
    except FoveaError as error:
        complain("error", str(error))
        sys.exit(1)
