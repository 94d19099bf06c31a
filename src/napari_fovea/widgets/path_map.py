"""The map of a replay, made beside the window: the newest step first."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, QTimer, Signal

from napari_fovea.widgets.job import Job, call

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_fovea.retina import FocusPath, Replay

_MOST = 2**19  # pixels of the map that is replayed
_APART = 0.3  # seconds between maps while it plays: each one takes a frame or two


class MapMaker(QObject):
    """Makes the map at the step that was asked for last, in a thread.

    Steps that were asked for meanwhile are left out, so it never falls behind.

    Parameters
    ----------
    parent : QObject, optional
        Its owner.
    """

    made = Signal(object, tuple)
    failed = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.step = -2
        """Step whose map is on show."""
        self._replay: Replay | None = None
        self.job: Job | None = None
        self._wanted: int | None = None
        self._hurry = True
        self._last = 0.0
        self._later = QTimer(self)
        self._later.setSingleShot(True)
        self._later.timeout.connect(self._begin)

    @property
    def ready(self) -> bool:
        """Whether there is a map to make."""
        return self._replay is not None

    @property
    def idle(self) -> bool:
        """Whether the map that was asked for last has been made."""
        return self._wanted is None and self.job is None

    def load(self, path: FocusPath) -> tuple[int, int]:
        """Take a path of one plane; return height and width of its map."""
        from napari_fovea.retina import Replay

        self.stop()
        self.step = -2
        if path.pmfs is None or path.shape is None:
            self._replay = None
            return path.shape or (1, 1)
        self._replay = Replay(path, most=_MOST)
        return self._replay.shape

    def stop(self) -> None:
        """Make no more maps."""
        self._later.stop()
        self._wanted = self._replay = None

    def ask(self, step: int, *, hurry: bool = True) -> None:
        """Want the map after a step, at once or as soon as another map is due."""
        self._wanted, self._hurry = step, hurry
        if self.job is not None:
            return
        if hurry:
            self._later.stop()
            self._begin()
        elif not self._later.isActive():
            wait = self._last + _APART - time.perf_counter()
            self._later.start(max(0, round(1000 * wait)))

    def _begin(self) -> None:
        replay, step = self._replay, self._wanted
        if replay is None or step is None or self.job is not None:
            return
        self._wanted = None

        def make() -> tuple[Any, int, NDArray[Any], tuple[float, float]]:
            from napari_fovea.device import leaving_a_core
            from napari_fovea.views.colours import map_colours

            with leaving_a_core():
                painted = map_colours(replay.at(step).probabilities)
            return replay, step, painted, replay.scale

        self.job = Job(call(make))
        self.job.returned.connect(self._take)
        self.job.errored.connect(self.failed.emit)
        self.job.finished.connect(self._finished)
        self.job.start()

    def _take(self, found: Any) -> None:
        replay, step, painted, scale = found
        if replay is self._replay:  # else another path was loaded meanwhile
            self.step = step
            self._last = time.perf_counter()
            self.made.emit(painted, scale)

    def _finished(self) -> None:
        self.job = None
        if self._wanted is not None:
            self.ask(self._wanted, hurry=self._hurry)
