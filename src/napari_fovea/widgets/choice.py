"""Which layers are learned from: images, and the labels that are painted on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_fovea.errors import FoveaError
from napari_fovea.widgets.fine_tune_form import Said
from napari_fovea.widgets.strokes import (
    Pair,
    Watch,
    images_in,
    labels_in,
    new_strokes,
)

if TYPE_CHECKING:
    from napari_fovea.widgets.fine_tune import FineTuneDock


class Choice:
    """Keeps the pairs of a Fine-tune dock.

    Parameters
    ----------
    dock : FineTuneDock
        Whose choice it is.
    watch : Watch
        Follows the labels that are chosen.

    Attributes
    ----------
    listed : list of Pair
        Those in the dock's list; empty while the pair in the form is meant.
    """

    def __init__(self, dock: FineTuneDock, watch: Watch) -> None:
        self.dock, self.form = dock, dock.form
        self.viewer = dock.viewer
        self.watch = watch
        self.listed: list[Pair] = []
        form = dock.form
        form.new_button.clicked.connect(self._new_strokes)
        form.add_button.clicked.connect(self._add)
        form.remove_button.clicked.connect(self._remove)
        form.painted_with.connect(self._paint_with)
        for box in (form.images, form.labels):
            box.currentIndexChanged.connect(lambda _: self._show())

    def take_hold(self) -> None:
        """Follow the layers of the viewer."""
        self.viewer.layers.events.renamed.connect(self.list_layers)
        self.viewer.layers.selection.events.active.connect(self._follow_selection)

    def let_go(self) -> None:
        """Follow nothing any more."""
        self.viewer.layers.events.renamed.disconnect(self.list_layers)
        self.viewer.layers.selection.events.active.disconnect(self._follow_selection)
        self.watch.follow([])

    @property
    def pairs(self) -> list[Pair]:
        """Pairs that are learned from: those of the list, or the one in the form."""
        if self.listed:
            return self.listed
        image, labels = self._layer(self.form.images), self._layer(self.form.labels)
        return [Pair(image, labels)] if image is not None and labels is not None else []

    @property
    def image(self) -> Any:
        """The image layer in the form; None if there is none."""
        return self._layer(self.form.images)

    def list_layers(self, event: Any = None) -> None:
        """List the layers anew, and forget pairs whose layers are gone."""
        there = set(self.viewer.layers)
        lost = [p for p in self.listed if not there.issuperset((p.image, p.labels))]
        self.listed = [p for p in self.listed if p not in lost]
        self.form.offer_layers(images_in(self.viewer), labels_in(self.viewer))
        self._show()
        self.dock.layers_changed(lost)

    def _follow_selection(self, event: Any = None) -> None:
        self.form.follow(self.viewer.layers.selection.active)

    def _show(self) -> None:
        self.form.show_pairs([str(p) for p in self.listed])
        self.watch.follow(p.labels for p in self.pairs)
        self.dock.enable()

    def _layer(self, box: Any) -> Any:
        for layer in self.viewer.layers:
            if str(layer.unique_id) == box.currentData():
                return layer
        return None

    def _new_strokes(self) -> None:
        image = self._layer(self.form.images)
        if image is None:
            return
        try:
            classes = len(self.form.names())
        except FoveaError as error:
            self.form.say(str(error), Said.ERROR)
            return
        labels = new_strokes(self.viewer, image, classes=classes)
        self.list_layers()
        self.form.choose(self.form.labels, labels)
        if self.listed:
            self.listed.append(Pair(image, labels))
        self._show()
        self.dock.look()

    def _add(self) -> None:
        image, labels = self._layer(self.form.images), self._layer(self.form.labels)
        if image is None or labels is None:
            return
        pair = Pair(image, labels)
        if pair not in self.listed:
            self.listed.append(pair)
        self._show()

    def _remove(self) -> None:
        index = self.form.pair_list.currentRow()
        if 0 <= index < len(self.listed):
            del self.listed[index]
        self._show()

    def _paint_with(self, number: int) -> None:
        """Take the brush, on the labels that are learned from."""
        active = self.viewer.layers.selection.active
        mine = [p.labels for p in self.pairs]
        layer = active if active in mine else (mine[0] if mine else None)
        if layer is not None:
            self.viewer.layers.selection.active = layer
            layer.selected_label = number
            layer.mode = "paint"
