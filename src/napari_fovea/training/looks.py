"""What a network sees of painted planes, found once and used for every refit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from napari_fovea.inference.dense import default_tiling
from napari_fovea.inference.reading import Seen, complete
from napari_fovea.inference.retina import RetinaReader
from napari_fovea.inference.tiles import plan_tiles, tile_length, tiled
from napari_fovea.networks import Adapted, AdaptedRetina, probabilities
from napari_fovea.networks.adapted import Looked, class_sums
from napari_fovea.retina import IGNORE, CropLook, FocusPath, Frame, VoteMap, cell_pmfs
from napari_fovea.training.samples import VOID

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_fovea.models import Model
    from napari_fovea.training.painted import PaintedPlane

_BATCH = 32  # subareas looked at together
_AROUND = 96  # subareas looked at around the strokes of a plane
_KEPT = 1536**2  # pixels up to which all features are kept: about a gigabyte


@dataclass(frozen=True)
class Rows:
    """Places whose class is known, and what the network sees there.

    Attributes
    ----------
    features : Tensor of float32, shape (n, F)
        As `networks.adapted` reads them, map after map.
    outputs : Tensor of float32, shape (n, C)
        Probabilities of the base's outputs.
    prior : Tensor of float32, shape (n, K)
        Logits of the classes before any evidence is read.
    target : Tensor of float32, shape (n, K)
        Share of each class in what was painted there; rows sum to 1.
    weight : Tensor of float32, shape (n,)
        Share of the place that was painted: what else is in a cell is not known.
    strokes : Tensor of int64, shape (n,)
        Number of the stroke; 0 where there are several.
    spread : Tensor of float32, shape (F,)
        Standard deviation of the features over all the plane.
    """

    features: torch.Tensor
    outputs: torch.Tensor
    prior: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor
    strokes: torch.Tensor
    spread: torch.Tensor


class Looks(Protocol):
    """What a network sees of one plane."""

    @property
    def bytes(self) -> int:
        """Memory that is held."""

    def rows(self, plane: PaintedPlane) -> Rows:
        """See the painted places."""

    def read(self, network: Any, *, plain: bool = False) -> Seen:
        """Read the plane with other evidence, without looking again where possible.

        Parameters
        ----------
        network : Module
            Differs from the one that looked in the evidence that it reads.
        plain : bool
            Tell what the network around which evidence is read says by itself.
        """


class DenseLooks:
    """What a network of pixels sees of a plane.

    All features of a plane of ordinary size are kept; of a larger one only those of
    painted places, tile by tile.

    Parameters
    ----------
    network : Adapted
        Ready, on the device of the image.
    image : Tensor of float32, shape (C, H, W)
        Normalised.
    model : Model
        Tells how large planes are cut.
    """

    def __init__(self, network: Adapted, image: torch.Tensor, *, model: Model) -> None:
        self.network, self.image, self.model = network, image, model
        height, width = image.shape[1:]
        small = height * width <= _KEPT and "tile" not in model.scan
        self._whole = self._look(image) if small else None

    @property
    def bytes(self) -> int:
        """Memory that is held."""
        return _size(self._whole) if self._whole is not None else 0

    def _look(self, image: torch.Tensor) -> Looked:
        height, width = image.shape[1:]
        m = self.network.multiple
        below = max(2 * m - height, -height % m)
        right = max(2 * m - width, -width % m)
        padded = functional.pad(image[None], (0, right, 0, below), mode="replicate")
        with torch.inference_mode():
            return self.network.look(
                padded.contiguous(memory_format=torch.channels_last)
            )

    def rows(self, plane: PaintedPlane) -> Rows:
        """See the painted pixels."""
        places = np.argwhere(plane.classes != VOID)
        classes = torch.from_numpy(plane.classes[tuple(places.T)].astype(np.int64))
        strokes = torch.from_numpy(plane.strokes[tuple(places.T)].astype(np.int64))
        parts = []
        if self._whole is not None:
            parts.append((np.arange(len(places)), (0, 0), self._whole))
        else:
            parts += [
                (some, corner, self._look(tile))
                for some, corner, tile in self._tiles(places)
            ]
        features, outputs, prior, spread = [], [], [], []
        order = np.concatenate([some for some, _, _ in parts])
        for some, corner, looked in parts:
            inside = torch.from_numpy(places[some] - np.array(corner))
            size = looked.outputs.shape[2:]
            at = [_at(m, inside, size) for m in looked.maps]
            features.append(torch.cat(at, dim=1))
            outputs.append(_at(looked.outputs, inside, size))
            prior.append(_at(self.network.prior(looked), inside, size))
            spread.append(
                torch.cat([m.float().std((0, 2, 3)) for m in looked.maps]).cpu()
            )
        back = torch.from_numpy(np.argsort(order))
        one_hot = functional.one_hot(classes, self.network.config.told).float()
        return Rows(
            torch.cat(features)[back],
            torch.cat(outputs)[back],
            torch.cat(prior)[back],
            one_hot,
            torch.ones(len(one_hot)),
            strokes,
            torch.stack(spread).mean(0),
        )

    def _tiles(
        self, places: NDArray[np.int64]
    ) -> list[tuple[NDArray[np.int64], tuple[int, int], torch.Tensor]]:
        """Tiles that hold painted pixels: which, where, and the tile."""
        tiling = default_tiling(self.model)
        corners, sides = [], []
        for length in self.image.shape[1:]:
            sides.append(tile_length(length, tiling))
            corners.append(np.array(plan_tiles(length, tiling)))
        # A pixel is seen in the tile in whose middle it lies best.
        nearest = [
            np.abs(places[:, i, None] - (starts + side / 2)).argmin(1)
            for i, (starts, side) in enumerate(zip(corners, sides, strict=True))
        ]
        found = []
        for i, j in np.unique(np.stack(nearest, axis=1), axis=0):
            some = np.flatnonzero((nearest[0] == i) & (nearest[1] == j))
            top, left = int(corners[0][i]), int(corners[1][j])
            tile = self.image[:, top : top + sides[0], left : left + sides[1]]
            found.append((some, (top, left), tile))
        return found

    def read(self, network: Adapted, *, plain: bool = False) -> Seen:
        """Read the plane with other evidence; see `Looks.read`."""
        height, width = self.image.shape[1:]
        if self._whole is not None:
            with torch.inference_mode():
                if plain:
                    outputs = self._whole.outputs
                else:
                    outputs = probabilities(network.decide(self._whole))
                outputs = outputs[0, :, :height, :width]
            return Seen(outputs, torch.ones_like(outputs[0]))

        def forward(batch: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return probabilities(network.base(batch) if plain else network(batch))

        seen: Seen = complete(
            tiled(
                forward,
                self.image,
                outputs=network.config.classes,
                tiling=default_tiling(self.model),
                multiple=network.multiple,
            )
        )
        return seen


def _at(features: torch.Tensor, places: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Features (n, F) at pixels (n, 2) of a map (1, F, h, w) enlarged to ``size``."""
    if features.shape[2:] == size:
        y, x = places.to(features.device).unbind(1)
        return features[0][:, y, x].T.float().cpu()
    extent = torch.tensor([size[1], size[0]])
    grid = (2 * places.flip(1) + 1) / extent - 1
    found = functional.grid_sample(
        features.float(),
        grid[None, None].to(features.device, torch.float32),
        padding_mode="border",
        align_corners=False,
    )
    return found[0, :, 0].T.cpu()


class RetinaLooks:
    """What a retina network sees of a plane: its own scan, and more around strokes.

    Parameters
    ----------
    network : AdaptedRetina
        Ready, on the device of the image.
    image : Tensor of float32, shape (C, H, W)
        Normalised.
    model : Model
        A retina model; tells policy and fusion.
    """

    def __init__(
        self, network: AdaptedRetina, image: torch.Tensor, *, model: Model
    ) -> None:
        self.network, self.image = network, image
        height, width = image.shape[1:]
        self.reader = RetinaReader(model, image.device, (height, width))
        grid = network.grid
        self._margin = self.reader.policy.margin(grid)
        self._crops = CropLook(network, image, grid=grid, margin=self._margin)
        # It walks as the base would: where to look does not change with every stroke.
        self._path: FocusPath = complete(self.reader.read(image)).path
        self._corners = torch.tensor(self._path.corners).to(image.device)
        self._seen = self._look(self._corners)

    @property
    def bytes(self) -> int:
        """Memory that is held."""
        return _size(self._seen)

    def _look(self, corners: torch.Tensor) -> Looked:
        parts = []
        with torch.inference_mode():
            for some in torch.split(corners, _BATCH):
                parts.append(self.network.look(self._crops.crops(some)))
        return Looked(
            torch.cat([p.outputs for p in parts]),
            (torch.cat([p.maps[0] for p in parts]),),
        )

    def rows(self, plane: PaintedPlane) -> Rows:
        """See the cells in which something is painted."""
        grid, config = self.network.grid, self.network.config
        rng = np.random.default_rng(plane.key[1])
        painted = np.argwhere(plane.classes != VOID)
        chosen = painted[rng.integers(len(painted), size=_AROUND)]
        # The fovea moves over the strokes, so that fine cells see them too.
        wander = rng.integers(-grid.fovea, grid.fovea + 1, chosen.shape)
        limits = np.array(plane.classes.shape) - 1
        extra = torch.from_numpy(np.clip(chosen + wander, 0, limits) - grid.d // 2)
        m, d = self._margin, grid.d
        high = torch.tensor([max(n + 2 * m, d) - d - m for n in plane.classes.shape])
        extra = torch.minimum(extra.clamp(min=-m), high).to(self._corners.device)
        corners = torch.cat([self._corners, extra])
        more = self._look(extra)
        looked = Looked(
            torch.cat([self._seen.outputs, more.outputs]),
            (torch.cat([self._seen.maps[0], more.maps[0]]),),
        )
        classes = np.where(
            plane.classes == VOID, IGNORE, plane.classes.astype(np.int64)
        )
        truth = self._cut(classes, corners, IGNORE)
        pmfs, known = cell_pmfs(truth, grid, classes=config.told)
        strokes = self._strokes(plane, corners)
        known = known.cpu()
        features = looked.maps[0].transpose(1, 2)
        return Rows(
            features.cpu()[known].float(),
            looked.outputs.transpose(1, 2).cpu()[known].float(),
            self.network.prior(looked).transpose(1, 2).cpu()[known].float(),
            pmfs.cpu()[known],
            self._painted(truth)[known],
            strokes[known],
            features.flatten(0, 1).float().std(0).cpu(),
        )

    def _cut(
        self, plane: NDArray[np.int64], corners: torch.Tensor, outside: int
    ) -> torch.Tensor:
        """Subareas (B, d, d) of a plane of numbers; nothing is known outside it."""
        d = self.network.grid.d
        frame = Frame.around(
            (plane.shape[0], plane.shape[1]),
            grid=self.network.grid,
            margin=self._margin,
        )
        canvas = np.full(frame.shape, outside, np.int64)
        canvas[frame.inner] = plane
        views = np.lib.stride_tricks.sliding_window_view(canvas, (d, d))
        y, x = (corners.cpu().numpy() + np.array(frame.origin)).T
        return torch.from_numpy(views[y, x])

    def _painted(self, truth: torch.Tensor) -> torch.Tensor:
        """Share (B, N) of each cell that is painted."""
        grid = self.network.grid
        index = torch.from_numpy(grid.cell_index).flatten()
        counts = torch.zeros(len(truth), grid.n_cells)
        counts.index_add_(1, index, (truth != IGNORE).flatten(1).float())
        return counts / torch.from_numpy(grid.areas)

    def _strokes(self, plane: PaintedPlane, corners: torch.Tensor) -> torch.Tensor:
        """Stroke (B, N) that each cell sees; 0 where there are none or several."""
        grid = self.network.grid
        cut = self._cut(plane.strokes.astype(np.int64), corners, 0).flatten(1)
        index = torch.from_numpy(grid.cell_index).flatten().expand_as(cut)
        none = torch.iinfo(torch.int64).max
        highest = cut.new_zeros(len(cut), grid.n_cells)
        highest.scatter_reduce_(1, index, cut, "amax")
        lowest = cut.new_full((len(cut), grid.n_cells), none)
        lowest.scatter_reduce_(1, index, torch.where(cut > 0, cut, none), "amin")
        return torch.where(highest == lowest, highest, 0)

    def read(self, network: AdaptedRetina, *, plain: bool = False) -> Seen:
        """Paint the map anew from what was seen; see `Looks.read`."""
        height, width = self.image.shape[1:]
        grid, device = network.grid, self.image.device
        frame = Frame.around((height, width), grid=grid, margin=self._margin)
        canvas = VoteMap(
            frame.shape,
            grid=grid,
            classes=network.config.classes,
            fusion=self.reader.fusion,
            device=device,
        )
        origin = torch.tensor(frame.origin, device=device)
        with torch.inference_mode():
            if plain:
                pmfs = self._seen.outputs.transpose(1, 2)
            else:
                pmfs = network.decide(self._seen).softmax(-1)
            for corners, some in zip(
                torch.split(self._corners, _BATCH),
                torch.split(pmfs, _BATCH),
                strict=True,
            ):
                canvas.paint(corners + origin, some)
        votes = canvas.votes[:, *frame.inner]
        overlap = canvas.overlap[frame.inner]
        return Seen(self.reader.fusion.read_out(votes, grid), overlap, self._path)


def _size(looked: Looked) -> int:
    return sum(t.numel() * t.element_size() for t in (looked.outputs, *looked.maps))


def looks_of(network: Any, image: torch.Tensor, *, model: Model) -> Looks:
    """Look at a plane with the kind of network that is given."""
    if isinstance(network, AdaptedRetina):
        return RetinaLooks(network, image, model=model)
    return DenseLooks(network, image, model=model)


def before(rows: Rows, belongs: tuple[int, ...]) -> torch.Tensor:
    """Class probabilities (n, K) that the base gives to rows."""
    return class_sums(rows.outputs, belongs)
