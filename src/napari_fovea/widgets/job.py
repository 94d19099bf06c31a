"""One adapter between generators of events and Qt's threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from qtpy.compat import isalive
from qtpy.QtCore import QObject, QThreadPool, Signal
from superqt.utils import WorkerBase

Make = Callable[[Callable[[], bool]], Generator[Any, None, Any]]
"""Given a function that tells whether to stop, starts a generator of events."""


_THREADS = 8


class _Signals(QObject):
    started = Signal()
    yielded = Signal(object)
    returned = Signal(object)
    errored = Signal(object)
    warned = Signal(tuple)
    finished = Signal()
    _finished = Signal(object)


class Job(WorkerBase):
    """Runs a generator in a thread; its events arrive on the GUI thread.

    A cancelled job still returns what its generator returns, and any error,
    ``RuntimeError`` included, is reported. ``finished`` always comes last.

    Parameters
    ----------
    make : callable
        Starts the generator; called in the thread, so it may import what is
        slow to import.
    """

    def __init__(self, make: Make) -> None:
        super().__init__(SignalsClass=_Signals)
        self._make = make
        self._cancel = threading.Event()

    def start(self) -> None:
        """Start it in a thread, however many others run."""
        # Qt allows as many as there are cores, and lets all others wait: a training
        # beside a run would keep a small job waiting for minutes.
        pool = QThreadPool.globalInstance()
        if pool is not None and pool.maxThreadCount() < _THREADS:
            pool.setMaxThreadCount(_THREADS)
        super().start()

    def cancel(self) -> None:
        """Ask the generator to stop and return what it has."""
        self._cancel.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to stop."""
        return self._cancel.is_set()

    def quit(self) -> None:
        """Stop for good: nothing more is reported. Called when napari closes."""
        self._cancel.set()
        super().quit()

    def run(self) -> None:
        """Run in the thread; where napari is gone meanwhile, nobody is told."""
        try:
            super().run()
        except RuntimeError:
            if isalive(self.signals):
                raise

    def work(self) -> Any:
        """Run the generator to its end; called in the thread."""
        run = self._make(self._cancel.is_set)
        try:
            while not self.abort_requested:
                try:
                    event = next(run)
                except StopIteration as end:
                    return end.value
                self.yielded.emit(event)
        finally:
            run.close()
        return None


class Jobs(list[Job]):
    """Short jobs that run at once, each kept until it has ended."""

    def begin(
        self, make: Make, then: Callable[..., Any], complain: Callable[..., Any]
    ) -> Job:
        """Start a job, and tell of its result or its error."""
        job = Job(make)
        self.append(job)
        job.returned.connect(then)
        job.errored.connect(complain)
        job.finished.connect(partial(self.remove, job))
        job.start()
        return job


def call(function: Callable[[], Any]) -> Make:
    """Let a `Job` run a plain function."""

    def make(cancelled: Callable[[], bool]) -> Generator[Any, None, Any]:
        yield from ()
        return function()

    return make
