"""Where to paint next: the camera moves to where the model in use is least sure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from napari_fovea.errors import FoveaError
from napari_fovea.widgets.fine_tune_form import Said
from napari_fovea.widgets.strokes import annotation_of

if TYPE_CHECKING:
    from napari_fovea.widgets.fine_tune import FineTuneDock

KEY = "N"
"""Goes to the next uncertain place."""


class NextPlace:
    """Goes from one uncertain place to the next.

    Parameters
    ----------
    dock : FineTuneDock
        Whose model and layers are meant.
    """

    def __init__(self, dock: FineTuneDock) -> None:
        self.dock = dock
        self._visited: list[tuple[int, int]] = []
        dock.form.next_button.clicked.connect(self.go)

    def take_hold(self) -> None:
        """Take the key."""
        self.dock.viewer.bind_key(KEY, self._by_key, overwrite=True)

    def let_go(self) -> None:
        """Give the key back, unless another dock has it now."""
        if self._by_key in self.dock.viewer.keymap.values():
            self.dock.viewer.bind_key(KEY, None)

    def begin_anew(self) -> None:
        """Forget where the camera has been: something was painted since."""
        self._visited = []

    def _by_key(self, viewer: Any) -> None:
        self.go()

    def go(self) -> None:
        """Move the camera to where a stroke would teach most."""
        dock = self.dock
        pairs, entry = dock.choice.pairs, dock.session.chosen
        if not pairs or entry is None or dock.job is not None:
            return
        before = dock.plane.place
        view = dock.plane.of(pairs)
        if view is None:
            return
        try:
            annotation_of(dock.plane.pair, **dock.form.how())
        except FoveaError as error:
            dock.form.say(str(error), Said.ERROR)
            return
        if dock.plane.place != before:
            self._visited = []
        if dock.plane.uncertainty is not None:
            self._go_to_most_uncertain(dock.plane.uncertainty)
            return
        dock.segment(
            view,
            lambda result: self._go_to_most_uncertain(result.uncertainty),
            "Looking for where the model is least sure…",
        )

    def _go_to_most_uncertain(self, uncertainty: Any) -> None:
        from napari_fovea.training.where import most_uncertain

        dock, pair = self.dock, self.dock.plane.pair
        painted = np.asarray(pair.labels.data)
        if painted.ndim > 2:
            painted = painted.reshape(-1, *painted.shape[-2:])[dock.plane.place[1]]
        place = most_uncertain(uncertainty, painted > 0, visited=self._visited)
        if place is None:
            dock.form.say("The model is sure of all that is left of this plane.")
            return
        self._visited.append(place)
        world = pair.image.data_to_world(np.array([*dock.plane.lead, *place]))
        dock.viewer.scene.camera.center = tuple(world[-min(3, len(world)) :])
        dock.viewer.layers.selection.active = pair.labels
        dock.form.say("Paint here: the model is least sure of this place.")
