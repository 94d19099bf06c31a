"""What a network sees of planes, kept from one refit to the next."""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

import numpy as np

from napari_fovea import device as devices
from napari_fovea.errors import ImageError, TrainingError
from napari_fovea.images import read_planes, resize, to_tensor
from napari_fovea.inference.assembly import Assembly
from napari_fovea.inference.choosing import reader_for
from napari_fovea.inference.dense import ready
from napari_fovea.inference.reading import complete
from napari_fovea.inference.sizes import object_diameter, resized
from napari_fovea.networks import (
    Adapted,
    AdaptedRetina,
    MaskRCNNConfig,
    PatchCenterConfig,
    RetinaConfig,
)
from napari_fovea.training.adapting import adapted
from napari_fovea.training.looks import Looks, Rows, looks_of
from napari_fovea.training.painted import PaintedPlane
from napari_fovea.training.samples import VOID
from napari_fovea.training.scales import Scales

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike
    from torch import nn

    from napari_fovea.inference import Segmentation
    from napari_fovea.inference.reading import Seen
    from napari_fovea.models import Model

KEPT = 512 << 20
"""Most bytes of features that are kept of planes other than the last one."""


class Seeing:
    """Looks at planes, and keeps what was seen.

    Parameters
    ----------
    trunk : Model
        Whose features are read.
    device : str
        ``"auto"`` or a torch device.

    Raises
    ------
    TrainingError
        If the model is an ensemble of systems.
    """

    def __init__(self, trunk: Model, *, device: str = "auto") -> None:
        if trunk.members:
            raise TrainingError(
                f"Model {trunk.name!r} is an ensemble of {len(trunk.members)} models; "
                "expected a single one to learn from what is painted: choose "
                f"{' or '.join(m.name for m in trunk.members)}."
            )
        self.trunk = trunk
        self.scales = Scales(trunk, device=device)
        self.device = devices.pick(device)
        self._adapted: tuple[tuple[str, ...], Model] | None = None
        self._network: Any = None
        self._looks: OrderedDict[tuple[str, int], tuple[str, Looks]] = OrderedDict()
        self._rows: dict[tuple[str, int], tuple[str, Rows]] = {}
        # Networks that read other evidence from the same looks.
        self._mine: WeakSet[nn.Module] = WeakSet()

    def forget(self) -> None:
        """Give back the memory of all that was seen."""
        self._adapted = self._network = None
        self._looks.clear()
        self._rows.clear()
        self._mine.clear()

    def prepare(self, classes: tuple[str, ...]) -> Any:
        """Make the trunk read evidence, on the device; kept until it changes."""
        if self._adapted is None or self._adapted[0] != classes:
            self.forget()
            model = adapted(self.trunk, classes)
            self._adapted = (classes, model)
            self._network = ready(model, self.device)
        return self._network

    @property
    def prepared(self) -> Model:
        """The trunk that reads evidence, but learned none yet."""
        assert self._adapted is not None, "prepare comes first"
        return self._adapted[1]

    def _can_adapt(self) -> bool:
        """Tell whether there is evidence to be read beside the trunk's opinion."""
        return not isinstance(self.trunk.config, MaskRCNNConfig | PatchCenterConfig)

    def look(self, plane: PaintedPlane) -> Looks:
        """Look at a plane, unless that was done already."""
        assert self._adapted is not None
        digest = _digest(plane.image)
        known = self._looks.get(plane.key)
        if known is None or known[0] != digest:
            image = plane.image.to(self.device)
            base = self._adapted[1]
            known = (digest, looks_of(self._network, image, model=base))
            self._looks[plane.key] = known
        self._looks.move_to_end(plane.key)
        while (
            len(self._looks) > 1
            and sum(x.bytes for _, x in self._looks.values()) > KEPT
        ):
            self._looks.popitem(last=False)
        return known[1]

    def see(self, plane: PaintedPlane) -> Rows:
        """Find what is seen at the painted places of a plane."""
        digest = _digest(plane.image) + sha256(plane.classes.tobytes()).hexdigest()
        known = self._rows.get(plane.key)
        if known is None or known[0] != digest:
            known = (digest, self.look(plane).rows(plane))
            self._rows[plane.key] = known
        return known[1]

    def segment(
        self,
        image: ArrayLike,
        index: int,
        *,
        name: str,
        rgb: bool | None,
        model: Model,
        diameter: float | Literal["auto"] | None = None,
        pixel_size: float | None = None,
    ) -> Segmentation:
        """Segment a plane; if it was looked at already, without looking again.

        Parameters
        ----------
        image : array_like
            As in `Annotation`.
        index : int
            Plane of the stack, counted from 0.
        name : str
            Of the image, as in its annotation.
        rgb : bool, optional
            Whether the last axis holds channels; guessed by default.
        model : Model
            That in use, or one that came from this tuner.
        diameter, pixel_size
            As in the annotation.

        Returns
        -------
        Segmentation
            Of the plane alone.
        """
        began = time.perf_counter()
        planes = read_planes(image, rgb=rgb).for_network(model.channels, blank=True)
        if not 0 <= index < len(planes):
            raise ImageError(
                f"{name} has {len(planes)} planes, but number {index} was asked for; "
                f"expected 0 to {len(planes) - 1}."
            )
        limits = model.normalisation.limits(planes)
        one = replace(planes, data=planes.data[index : index + 1], lead=())
        factor = self.scales.of(
            planes, limits, diameter=diameter, pixel_size=pixel_size
        )
        shape = resized(planes.shape, factor)
        pixels = to_tensor(one.data[0], limits=limits, channels=model.channels)
        scale = (planes.shape[0] / shape[0], planes.shape[1] / shape[1])
        seen = self._read((name, index), resize(pixels, shape), model, scale)
        focused = isinstance(model.config, RetinaConfig)
        store = Assembly(one, classes=len(model.classes), shape=shape, focused=focused)
        known = None if diameter == "auto" else diameter
        expected = object_diameter(model, factor, known)
        store.add(0, model, seen, diameter=expected)
        path = store.path(grid=model.config.grid) if focused else None  # type: ignore[attr-defined]
        made = {
            "model": model.name,
            "fine_tuned": model.provenance.get("fine_tuned"),
            "device": devices.describe(self.device),
            "fixations": len(path) if path is not None else None,
            "cancelled": False,
            "seconds": round(time.perf_counter() - began, 3),
        }
        return store.result(path, made)

    def _read(
        self,
        key: tuple[str, int],
        pixels: torch.Tensor,
        model: Model,
        scale: tuple[float, float],
    ) -> Seen:
        network = copy.deepcopy(model.network).to(self.device)
        shape = (pixels.shape[1], pixels.shape[2])
        mine, plain = model.network in self._mine, False
        if model is self.trunk and self._can_adapt():
            self.prepare(self._adapted[0] if self._adapted else model.classes)
            evident = isinstance(model.network, Adapted | AdaptedRetina)
            assert self._adapted is not None
            # Of other classes, what is prepared has not the evidence of the trunk.
            mine = not evident or self._adapted[0] == model.classes
            if mine:
                network, plain = self._network, not evident
        if mine:
            nothing = np.full(shape, VOID, np.uint8)
            plane = PaintedPlane(key, pixels, nothing, np.zeros(shape, np.int32))
            seen = self.look(plane).read(network, plain=plain)
            if seen.path is None:
                return seen
            return replace(seen, path=replace(seen.path, scale=scale))
        placed = replace(model, network=network)
        run = reader_for(placed, self.device, shape).read(
            pixels.to(self.device), scale=scale, cancelled=lambda: False
        )
        told: Seen = complete(run)
        return told


def _digest(image: torch.Tensor) -> str:
    """Tell one image from another; repeated channels need not be read again."""
    distinct = image[:1] if image.stride(0) == 0 else image
    return sha256(distinct.contiguous().numpy().tobytes()).hexdigest()
