"""Asking what decided an object or a place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import Qt

from napari_fovea.errors import FoveaError
from napari_fovea.widgets import layers
from napari_fovea.widgets.attention_form import Row
from napari_fovea.widgets.clicking import clicked
from napari_fovea.widgets.earlier import earlier
from napari_fovea.widgets.job import Job
from napari_fovea.widgets.measuring import instances_of, plane_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from napari_fovea.widgets.attention import AttentionDock
    from napari_fovea.widgets.attention_layers import MapLayers

_FIXATIONS = 12  # that are listed
_CELLS = 60  # that are shown on the image


class Asking:
    """Answers clicks by telling what decided the place.

    Parameters
    ----------
    dock : AttentionDock
        Whose model and image are meant.
    """

    def __init__(self, dock: AttentionDock) -> None:
        self.dock = dock
        self.job: Job | None = None
        dock.form.ask.toggled.connect(self._toggled)
        dock.form.answers.itemClicked.connect(self._chosen)
        dock.form.cancel_button.clicked.connect(self.cancel)

    def take_hold(self) -> None:
        """Take clicks."""
        self.dock.viewer.mouse_drag_callbacks.append(self._clicked)

    def let_go(self) -> None:
        """Give them back."""
        callbacks = self.dock.viewer.mouse_drag_callbacks
        if self._clicked in callbacks:
            callbacks.remove(self._clicked)
        if self.job is not None:
            self.job.quit()

    def cancel(self) -> None:
        """Stop looking for an answer."""
        if self.job is not None:
            self.job.cancel()
            self.dock.form.say("Stopping…")

    def clear(self) -> None:
        """Forget the last answer."""
        self.dock.form.answer([], [])
        if self.dock.shown is not None:
            self.dock.shown.hide_why()

    def _toggled(self, on: bool) -> None:
        if on:
            self.dock.form.say("Click an object or a place on the image.")
        else:
            self.clear()

    def _clicked(self, viewer: Any, event: Any) -> Generator[None, None, None]:
        if not self.dock.form.ask.isChecked():
            return
        clean = yield from clicked(viewer, event)
        if clean:
            shown = self.dock.ready_to_ask()
            if shown is not None:
                self.ask(shown.place(event.position))

    def ask(self, point: tuple[float, float]) -> None:
        """Ask about a place.

        Parameters
        ----------
        point : tuple of float
            Row and column in the region, in pixels; the object that lies there is
            meant, if there is one.
        """
        dock = self.dock
        shown, entry = dock.ready_to_ask(), dock.session.chosen
        if self.job is not None or shown is None or entry is None:
            return
        shape = np.shape(shown.region.array)
        size = shape[-3:-1] if shown.region.rgb else shape[-2:]
        if not all(-0.5 <= p < n - 0.5 for p, n in zip(point, size, strict=True)):
            dock.form.say("This place lies outside the region that is looked at.")
            return
        if dock.viewer.dims.ndisplay > 2:
            dock.form.say("Answers are flat: switch the view to 2D to ask.")
            return
        region, what = _object_at(shown, point, size)
        shared = dock.session
        before = earlier(dock.viewer.layers, shown.source, shown.region, entry)
        path = before.path or dock.path
        array, rgb = shown.region.array, shown.region.rgb
        pixel_size = layers.pixel_size(shown.source)

        def make(cancelled: Any) -> Generator[Any, None, Any]:
            from napari_fovea.device import leaving_a_core
            from napari_fovea.inference import deciding, explain, segment

            model = shared.load(entry)
            scanned = path
            common: dict[str, Any] = {
                "rgb": rgb,
                "pixel_size": pixel_size,
                "device": shared.device,
            }
            with leaving_a_core():
                if not entry.focused:
                    yield from ()
                    answer = explain(
                        np.asarray(array),
                        model,
                        region=region,
                        cancelled=cancelled,
                        **common,
                        **before.settings,
                    )
                    return answer, None
                if scanned is None:
                    result = yield from segment(
                        np.asarray(array),
                        model,
                        cancelled=cancelled,
                        **common,
                        **before.settings,
                    )
                    scanned = result.path
            assert scanned is not None
            return deciding(scanned, region, most=_CELLS), scanned

        dock.form.busy(True)
        dock.form.say(f"Asking what decided {what}…")
        self.job = Job(make)
        self.job.yielded.connect(
            dock.safely(lambda e: dock.form.progress.setValue(round(1000 * e.fraction)))
        )
        self.job.returned.connect(
            dock.safely(lambda found: self._answered(what, shown, *found))
        )
        self.job.errored.connect(dock.complain)
        self.job.finished.connect(dock.safely(self._finished))
        self.job.start()

    def _finished(self) -> None:
        self.job = None
        self.dock.form.busy(self.dock.job is not None)

    def _answered(self, what: str, shown: MapLayers, answer: Any, path: Any) -> None:
        dock = self.dock
        if shown is not dock.shown or not dock.form.ask.isChecked():
            return  # another image or plane is looked at, or nothing is asked any more
        if self.job is not None and self.job.cancelled:
            dock.form.say("Stopped; the question was not answered.")
            return
        shown.hide_why()
        if path is None:
            self._tell_influence(what, shown, answer)
            return
        dock.keep_path(path)
        looks = answer.looks
        if dock.viewer.dims.ndisplay == 2:  # napari adds no flat shapes in 3D
            shown.show_cells(looks["box"], looks["share"])
        rows = []
        for step in np.argsort(-answer.shares, kind="stable")[:_FIXATIONS].tolist():
            cells = looks[looks["fixation"] == step]
            told = [f"fixation {step + 1}", f"{answer.shares[step]:.1%}", ""]
            parts = tuple(
                [
                    f"cell of {cell['side']} px",
                    f"{cell['share']:.1%}",
                    f"{cell['pmf'][answer.label]:.0%}",
                ]
                for cell in cells
            )
            rows.append(Row(told, step, parts))
        dock.form.answer(["Who saw it", "Share", answer.name], rows)
        many = int((answer.shares > 0).sum())
        best = float(np.sort(answer.shares)[::-1][:_FIXATIONS].sum())
        dock.form.say(
            f"{what.capitalize()} is {answer.name} by {answer.probability:.0%}. "
            f"{many} fixations saw it; those listed have {best:.0%} of the vote."
        )

    def _tell_influence(self, what: str, shown: MapLayers, answer: Any) -> None:
        dock = self.dock
        shown.show_saliency(answer.saliency, opacity=dock.opacity())
        rows = [
            Row([one.name, f"{one.share:.0%}", f"{one.amount:+.2g}"])
            for one in answer.influence
        ]
        dock.form.answer(["Attention", "Share", "Effect"], rows)
        target = answer.target
        dock.form.say(
            f"{what.capitalize()} is {target.name} with log-odds "
            f"{target.log_odds:+.1f}. Red pixels speak for it, blue ones against; "
            "this is first order, no cause."
        )

    def _chosen(self, item: Any, column: int = 0) -> None:
        """Let the player go to the fixation of a row."""
        step = item.data(0, Qt.ItemDataRole.UserRole)
        if step is not None:
            self.dock.point(step)


def _object_at(
    shown: MapLayers, point: tuple[float, float], size: tuple[int, ...]
) -> tuple[Any, str]:
    """Find the object at a place of the region, as a mask; else the place itself."""
    y, x = round(point[0]), round(point[1])
    down, right = (round(v) for v in shown.region.offset[-2:])
    place = f"the place ({y + down}, {x + right})"
    layer = instances_of(shown)
    if layer is None:
        return (y, x), place
    try:
        (top, left), plane = plane_of(shown, layer)
    except FoveaError:
        return (y, x), place
    down, right = (
        round(a - b) for a, b in zip(shown.region.offset[-2:], (top, left), strict=True)
    )
    inside = np.zeros(size, dtype=plane.dtype)
    rows = slice(max(0, -down), min(size[0], plane.shape[0] - down))
    columns = slice(max(0, -right), min(size[1], plane.shape[1] - right))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return (y, x), place
    inside[rows, columns] = plane[
        rows.start + down : rows.stop + down,
        columns.start + right : columns.stop + right,
    ]
    number = int(inside[y, x])
    return (inside == number, f"object {number}") if number else ((y, x), place)
