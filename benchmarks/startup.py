"""What importing the package adds to a bare Python, and how long docks take to open."""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

from machine import tell

ROUNDS = 15
OPENINGS = 3


def main() -> None:
    """Measure turn by turn and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dock", help="measure this one alone, and print it plainly")
    dock = parser.parse_args().dock
    if dock is not None:
        print(json.dumps(opening(dock)), flush=True)
        return
    importing()
    from npe2 import PluginManifest

    manifest = PluginManifest.from_distribution("napari-fovea").contributions
    names = {command.id: command.python_name for command in manifest.commands or ()}
    for widget in manifest.widgets or ():
        command = [sys.executable, __file__, "--dock", names[widget.command]]
        rounds = [
            json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
            for _ in range(OPENINGS)
        ]
        seconds, empty = (
            statistics.median(r[key] for r in rounds) for key in ("seconds", "empty")
        )
        tell(
            "startup",
            {
                "dock": widget.display_name,
                "seconds": round(seconds, 3),
                "empty_dock_seconds": round(empty, 3),
                "over_empty_dock": round(seconds / empty, 2),
                "torch_when_open": any(r["torch_when_open"] for r in rounds),
                "torch_on_the_gui_thread": any(r["torch_on_gui"] for r in rounds),
            },
        )


def importing() -> None:
    """Tell what importing the package adds."""
    bare, ours = [], []
    for _ in range(ROUNDS):
        bare.append(timed("pass"))
        ours.append(timed("import napari_fovea"))
    brought = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, napari_fovea;"
            "print(*({'torch', 'qtpy', 'napari', 'numpy'} & set(sys.modules)))",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    more = statistics.median(ours) - statistics.median(bare)
    tell(
        "startup",
        {
            "import_ms_over_bare_python": round(more, 1),
            "import_over_bare_python": round(
                statistics.median(ours) / statistics.median(bare), 3
            ),
            "heavy_modules": brought,
        },
    )


def timed(code: str) -> float:
    """Milliseconds that a fresh Python takes for ``code``."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return 1000 * (time.perf_counter() - started)


class Watch:
    """Tells in which threads torch is looked for."""

    def __init__(self) -> None:
        self.on_gui = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Find nothing; see `importlib.abc.MetaPathFinder`."""
        if name == "torch":
            gui = threading.current_thread() is threading.main_thread()
            self.on_gui = self.on_gui or gui


def opening(name: str) -> dict[str, Any]:
    """Open an empty dock and one of ours, each until it has been painted."""
    import napari
    from qtpy.QtCore import QEvent, QObject
    from qtpy.QtWidgets import QApplication, QWidget

    class Painted(QObject):  # type: ignore[misc]
        seen = False

        def eventFilter(self, watched: Any, event: Any) -> bool:
            self.seen = self.seen or event.type() == QEvent.Type.Paint
            return False

    def wait(done: Any, seconds: float = 60) -> None:
        until = time.perf_counter() + seconds
        while not done() and time.perf_counter() < until:
            QApplication.processEvents()

    def opened(make: Any) -> float:
        started = time.perf_counter()
        widget, painted = make(), Painted()
        widget.installEventFilter(painted)
        viewer.window.add_dock_widget(widget, name=name)
        wait(lambda: painted.seen)
        return time.perf_counter() - started

    def ours() -> Any:
        module, part = name.split(":")
        return getattr(importlib.import_module(module), part)(viewer)

    watch = Watch()
    sys.meta_path.insert(0, watch)  # type: ignore[arg-type]
    viewer = napari.Viewer()
    wait(lambda: False, seconds=2)
    opened(QWidget)  # the first dock of a window costs more
    figures = {"empty": opened(QWidget), "seconds": opened(ours)}
    when_open = "torch" in sys.modules
    from napari_fovea.widgets.session import session

    wait(lambda: bool(session().entries), seconds=10)  # which takes torch
    viewer.close()
    return figures | {"torch_when_open": when_open, "torch_on_gui": watch.on_gui}


if __name__ == "__main__":
    main()
