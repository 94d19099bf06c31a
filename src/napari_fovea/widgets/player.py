"""The clock of a replay: which step is shown when."""

from __future__ import annotations

import time

from qtpy.QtCore import QObject, Qt, QTimer, Signal

_TICK = 25  # ms; the window is redrawn as fast as it can, at most this often


class Player(QObject):
    """Walks through the steps of a path at a speed of its own.

    The step is chosen from the clock on the wall: where the window is slow, steps
    are left out, and the replay takes as long as it should.

    Parameters
    ----------
    parent : QObject, optional
        Its owner.
    """

    stepped = Signal(int)
    toggled = Signal(bool)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.count = 0
        self.step = 0
        self.loop = False
        self._speed = 25.0
        self._timer = QTimer(self)
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.setInterval(_TICK)
        self._timer.timeout.connect(self._tick)
        self._since, self._from = 0.0, 0

    @property
    def playing(self) -> bool:
        """Whether it walks on by itself."""
        return self._timer.isActive()

    @property
    def speed(self) -> float:
        """Steps per second."""
        return self._speed

    @speed.setter
    def speed(self, speed: float) -> None:
        self._speed = max(0.1, speed)
        self._begin_here()

    def load(self, count: int) -> None:
        """Have a path of so many steps to walk."""
        self.pause()
        self.count = count
        self.step = 0

    def play(self) -> None:
        """Walk on; from the first step if it stands at the last."""
        if not self.count:
            return
        if self.step >= self.count - 1:
            self.go(0)
        self._begin_here()
        if not self.playing:
            self._timer.start()
            self.toggled.emit(True)

    def pause(self) -> None:
        """Stand still."""
        if self.playing:
            self._timer.stop()
            self.toggled.emit(False)

    def go(self, step: int) -> None:
        """Stand at a step, and walk on from there if it is playing."""
        if not self.count:
            return
        self.step = min(max(step, 0), self.count - 1)
        self._begin_here()
        self.stepped.emit(self.step)

    def _begin_here(self) -> None:
        self._since, self._from = time.perf_counter(), self.step

    def _tick(self) -> None:
        target = self._from + int((time.perf_counter() - self._since) * self._speed)
        if target >= self.count:
            target = target % self.count if self.loop else self.count - 1
        if target != self.step:
            self.step = target
            self.stepped.emit(target)
        if target == self.count - 1 and not self.loop:
            self.pause()
