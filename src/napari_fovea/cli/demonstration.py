"""The command that shows the main job on a sample image."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from napari_fovea.cli.common import app, out
from napari_fovea.errors import FoveaError


@app.command()
def demo(
    headless: Annotated[
        bool, typer.Option("--headless", help="Write files instead of opening napari.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("demo"),
) -> None:
    """Segment a sample image in napari and show where the network looked."""
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not display:
        _on_virtual_display(output)
        return
    from napari_fovea.widgets.demo import run_demo

    for path in run_demo(output if headless else None):
        out.print(f"wrote {path}")


def _on_virtual_display(output: Path) -> None:
    """Start again under Xvfb."""
    import shutil
    import subprocess

    runner = shutil.which("xvfb-run")
    if runner is None:
        raise FoveaError(
            "There is no display and no xvfb-run to make a virtual one; expected "
            "either: set DISPLAY, or install the package xvfb."
        )
    command = [runner, "-a", "-s", "-screen 0 1600x1000x24"]
    again = [sys.executable, "-m", "napari_fovea.cli", "demo", "--headless"]
    code = subprocess.call([*command, *again, "--output", str(output)])
    if code:
        raise typer.Exit(code)
