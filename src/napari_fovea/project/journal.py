"""A journal of work in progress, so that a crash costs a second of it at most."""

from __future__ import annotations

import json
import math
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from napari_fovea.errors import ProjectError
from napari_fovea.project import journals
from napari_fovea.project.identity import plain
from napari_fovea.project.manifest import store
from napari_fovea.project.painted import check_labels
from napari_fovea.project.writer import LayerNews, News, Settings, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from napari_fovea.models import Model
    from napari_fovea.project.identity import ImageId
    from napari_fovea.project.work import Step

    Labels = NDArray[np.integer[Any]]

INTERVAL = 0.5
"""Seconds between two writes."""

RETRY = 5.0
"""Seconds until what could not be written is tried again."""

PATIENCE = 10.0
"""Seconds that closing waits for a disk that does not answer."""


class Journal:
    """Keeps work in a project's folder, written by a thread of its own.

    Its methods only leave word and return at once. Nothing is made on disk before
    the first word. What cannot be written waits and is tried again; of everything
    only the newest waits.

    Parameters
    ----------
    root : Path, optional
        Folder of all journals; the user's own if not given.
    on_error : callable, optional
        Told each new error in a sentence, from the writing thread.

    Attributes
    ----------
    error : str or None
        What keeps the journal from being written; None if all is well.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        on_error: Callable[[str], None] | None = None,
    ) -> None:
        self.error: str | None = None
        self._on_error = on_error
        self._writer = Writer(root or journals.default_root())
        self._changed = threading.Condition()
        self._news = News()
        self._layers: dict[str, LayerNews] = {}
        self._steps = 0
        self._current = -1
        self._told = self._kept = self._tries = 0
        self._due = self._hurried = self._busy = False
        self._closing = self._discarding = False
        self._thread: threading.Thread | None = None

    @property
    def folder(self) -> Path | None:
        """Where it is kept; None before anything was written."""
        return self._writer.folder

    def strokes(self, key: str, image: ImageId, layer: str, labels: Labels) -> None:
        """Tell all that is painted in a labels layer.

        Parameters
        ----------
        key : str
            What the caller knows the layer by.
        image : ImageId
            What was painted on.
        layer : str
            Name of the layer.
        labels : ndarray of int
            All of it: a copy that nobody will change.
        """
        check_labels(labels)
        told = LayerNews(image, plain(layer), labels.shape, labels.dtype.str)
        with self._word():
            self._layers[key] = told
            self._news.layers[key] = replace(told, whole=labels)

    def plane(self, key: str, index: tuple[int, ...], labels: Labels) -> None:
        """Tell what is painted in one plane of a stack.

        Parameters
        ----------
        key : str
            A layer that `strokes` told of.
        index : tuple of int
            Where on the leading axes.
        labels : ndarray of int
            The plane: a copy that nobody will change.

        Raises
        ------
        KeyError
            If `strokes` did not tell of this layer.
        ProjectError
            If the layer has no such plane.
        """
        told = self._layers[key]
        index = tuple(int(i) for i in index)
        depth = len(index)
        there = all(0 <= i < n for i, n in zip(index, told.shape, strict=False))
        fits = labels.shape == told.shape[depth:] and labels.dtype.str == told.dtype
        if depth > len(told.shape) or not there or not fits:
            raise ProjectError(
                f"Plane {index} of layer {told.name!r} has shape {labels.shape} and "
                f"type {labels.dtype.str}; expected a plane of {told.dtype} in shape "
                f"{told.shape}: tell the whole layer."
            )
        with self._word():
            before = self._news.layers.get(key)
            self._news.layers[key] = replace(told, planes={index: labels}).after(before)

    def drop(self, key: str) -> None:
        """Forget a labels layer."""
        with self._word():
            if self._layers.pop(key, None) is not None:
                self._news.layers[key] = None

    def settings(
        self, base: str, classes: Mapping[int, str], settings: Mapping[str, Any]
    ) -> None:
        """Tell the model one began with, the classes, and what else JSON can hold."""
        named = {int(label): str(name) for label, name in classes.items()}
        copied = json.loads(json.dumps(dict(settings)))
        with self._word():
            self._news.settings = Settings(plain(base), named, copied)

    def step(self, step: Step, model: Model | Path | None = None) -> None:
        """Tell of a new model in the history.

        Parameters
        ----------
        step : Step
            What it is. In the journal its model has a file of its own.
        model : Model or Path, optional
            The model, or its file, which is copied; None for the base.

        Raises
        ------
        ProjectError
            If the step's date is no date.
        """
        store(replace(step, file=None), None)  # what is odd fails here
        with self._word():
            self._news.steps[self._steps] = (step, model)
            self._news.bound(self._current)
            self._steps += 1

    def current(self, index: int) -> None:
        """Tell which step is in use, counting all that were told; -1 for none."""
        with self._word():
            self._current = self._news.current = index

    def flush(self, timeout: float = 10.0) -> bool:
        """Write at once what waits, and tell whether all is written."""
        deadline = time.monotonic() + timeout
        with self._changed:
            aim = self._told
            # An attempt that is under way does not know all of it.
            tries = self._tries + 1 + self._busy
            self._hurried = self._kept < aim
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._kept >= aim or self._tries >= tries or self._stopped,
                max(0.0, deadline - time.monotonic()),
            )
            return self._kept >= aim

    def close(self, *, discard: bool = False) -> None:
        """Stop writing and let go of the folder.

        What is told from now on is not kept.

        Parameters
        ----------
        discard : bool
            Remove the journal: the work is saved, or not wanted.
        """
        with self._changed:
            self._closing, self._discarding = True, discard
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(PATIENCE)

    @property
    def _stopped(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    @contextmanager
    def _word(self) -> Iterator[None]:
        """Take a word from the caller, and wake the writer."""
        with self._changed:
            yield
            self._told += 1
            self._due = True
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(
                    target=self._run, name="napari-fovea journal", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def _run(self) -> None:
        last = -math.inf
        closing = False
        while not closing:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._due or self._hurried or self._closing,
                    None if self.error is None else RETRY,
                )
                self._changed.wait_for(
                    lambda: self._hurried or self._closing,
                    max(0.0, last + INTERVAL - time.monotonic()),
                )
                closing, aim = self._closing, self._told
                news, self._news = self._news, News()
                self._due = self._hurried = False
                self._busy = True
            if closing and self._discarding:
                break
            error = self._writer.write(news)
            last = time.monotonic()
            self._settle(news, aim, error)
        self._writer.close(discard=self._discarding)
        with self._changed:
            self._changed.notify_all()

    def _settle(self, left: News, aim: int, error: str | None) -> None:
        with self._changed:
            self._news.after(left)
            self._news.bound(self._current)
            new = error is not None and error != self.error
            self.error = error
            self._tries += 1
            self._busy = False
            if error is None:
                self._kept = aim
            self._changed.notify_all()
        if new and error is not None and self._on_error is not None:
            # Whoever listens may be gone; the work must be kept all the same.
            with suppress(Exception):
                self._on_error(error)
