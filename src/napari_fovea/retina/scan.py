"""The engine that moves the retina over an image, batch by batch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
import torch

from napari_fovea.errors import FoveaError
from napari_fovea.retina.fusion import Fusion, VoteMap
from napari_fovea.retina.grid import RetinaGrid, uncertainty
from napari_fovea.retina.path import FocusPath
from napari_fovea.retina.policy import Policy, Raster, step_size

Look = Callable[[torch.Tensor], torch.Tensor]
"""Corners (B, 2) in pixels of the image → class pmfs (B, N, K)."""


@dataclass(frozen=True)
class Frame:
    """The canvas a scan runs on: the image and the margin around it.

    Attributes
    ----------
    shape : tuple of int
        Height and width of the canvas.
    inner : tuple of slice
        Where on it the image lies.
    """

    shape: tuple[int, int]
    inner: tuple[slice, slice]

    @classmethod
    def around(cls, shape: tuple[int, int], *, grid: RetinaGrid, margin: int) -> Frame:
        """Lay a margin around an image, and more where it is smaller than ``d``."""
        height, width = (max(n + 2 * margin, grid.d) for n in shape)
        inner = tuple(slice(margin, margin + n) for n in shape)
        return cls((height, width), inner)  # type: ignore[arg-type]

    @property
    def origin(self) -> tuple[int, int]:
        """Row and column of the image's first pixel on the canvas."""
        return self.inner[0].start, self.inner[1].start

    def lay(self, image: torch.Tensor) -> torch.Tensor:
        """Lay an image (C, H, W) on it, reflected as often as the margin needs."""
        # Repeated channels share memory, and go on sharing it.
        laid = image[:1] if image.stride(0) == 0 else image
        for axis, (size, inner) in enumerate(
            zip(self.shape, self.inner, strict=True), start=-2
        ):
            n = laid.shape[axis]
            if n == size:
                continue
            period = max(2 * (n - 1), 1)
            place = (torch.arange(size, device=image.device) - inner.start) % period
            laid = laid.index_select(
                axis, torch.where(place < n, place, period - place)
            )
        return laid.expand(len(image), -1, -1)


@dataclass(frozen=True, slots=True)
class Looked:
    """One batch of fixations has been seen.

    Attributes
    ----------
    corners : Tensor of int64, shape (B, 2)
        Top-left corners in pixels of the image.
    entropies : Tensor, shape (B,)
        H(S) of each.
    steps : Tensor of int64, shape (B,)
        Step f(H) in pixels after each, equation (3).
    pmfs : Tensor of float16, shape (B, N, K)
        What was seen: the pmf of every cell.
    done, expected : int
        Fixations made so far, and estimate of how many there will be.
    votes, overlap : Tensor
        Live views of the map, (K, H, W) and (H, W): copy what is to be kept.
    """

    corners: torch.Tensor
    entropies: torch.Tensor
    steps: torch.Tensor
    pmfs: torch.Tensor
    done: int
    expected: int
    votes: torch.Tensor
    overlap: torch.Tensor


@dataclass(frozen=True)
class Scan:
    """Result of a scan.

    Attributes
    ----------
    probabilities : Tensor, shape (K, H, W)
        Class probabilities; uniform where nothing was seen.
    overlap : Tensor, shape (H, W)
        How many subareas covered each pixel: the paper's heat map.
    path : FocusPath
        Where it looked.
    """

    probabilities: torch.Tensor
    overlap: torch.Tensor
    path: FocusPath


def scan(
    look: Look,
    shape: tuple[int, int],
    *,
    grid: RetinaGrid,
    classes: int,
    policy: Policy,
    fusion: Fusion,
    budget: int | None = None,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[Looked, None, Scan]:
    """Look at an image until the policy has seen enough.

    Memory is that of the map and of one batch, however many fixations follow.

    Parameters
    ----------
    look : callable
        Corners (B, 2) → pmfs (B, N, K); see `Look`. Corners may lie outside the
        image by up to the policy's margin.
    shape : tuple of int
        Height and width of the image in pixels, each at least 1.
    grid : RetinaGrid
        Cells of a subarea.
    classes : int
        Number of classes K.
    policy : Policy
        Where to look next.
    fusion : Fusion
        How overlapping cells are weighed.
    budget : int, optional
        Most fixations to make; by default as many as the policy wants.
    batch_size : int
        Most subareas that are looked at together.
    device : torch.device or str
        Where the map lives.
    cancelled : callable
        Asked after every batch; where it says yes, the scan ends with what it has.

    Yields
    ------
    Looked
        After each batch.

    Returns
    -------
    Scan
        A valid map after any number of batches.

    Raises
    ------
    FoveaError
        If the shape, the budget or the batch size is not positive.
    """
    if min(shape) < 1:
        raise FoveaError(
            f"An image of {shape[0]}×{shape[1]} pixels is empty: give at least 1×1."
        )
    for name, value in (("budget", budget), ("batch size", batch_size)):
        if value is not None and value < 1:
            raise FoveaError(f"The {name} is {value}; give an integer of 1 or more.")
    frame = Frame.around(shape, grid=grid, margin=policy.margin(grid))
    canvas = VoteMap(
        frame.shape,
        grid=grid,
        classes=classes,
        fusion=fusion,
        device=torch.device(device),
    )
    origin = torch.tensor(frame.origin, device=device)
    votes, overlap = canvas.votes[:, *frame.inner], canvas.overlap[frame.inner]
    sigma = policy.sigma if isinstance(policy, Raster) else Raster().sigma
    seen: list[Looked] = []
    most = budget if budget is not None else sys.maxsize
    done = 0
    fixations = policy.fixations(canvas, grid=grid, inner=frame.inner)
    proposed = next(fixations)
    stop = False
    while not stop:
        expected = min(done + proposed.remaining, most)
        entropies = []
        for part in torch.split(proposed.corners[: most - done], batch_size):
            pmfs = look(part - origin)
            canvas.paint(part, pmfs)
            entropies.append(uncertainty(pmfs))
            done += len(part)
            looked = Looked(
                part - origin,
                entropies[-1],
                step_size(entropies[-1], grid.d, sigma=sigma),
                pmfs.half(),
                done,
                max(done, expected),
                votes,
                overlap,
            )
            seen.append(looked)
            yield looked
            stop = cancelled() or done == most
            if stop:
                break
        else:
            try:
                proposed = fixations.send(torch.cat(entropies))
            except StopIteration:
                stop = True
    fixations.close()
    path = _path(seen, shape, grid=grid, policy=policy, fusion=fusion)
    return Scan(fusion.read_out(votes, grid), overlap, path)


def _path(
    seen: list[Looked],
    shape: tuple[int, int],
    *,
    grid: RetinaGrid,
    policy: Policy,
    fusion: Fusion,
) -> FocusPath:
    corners = torch.cat([s.corners for s in seen]).cpu().numpy()
    entropies = torch.cat([s.entropies for s in seen]).float().cpu().numpy()
    steps = torch.cat([s.steps for s in seen]).cpu().numpy()
    # Autocast on a CPU cannot join tensors of float16.
    pmfs = np.concatenate([s.pmfs.cpu().numpy() for s in seen])
    if isinstance(policy, Raster):
        # Rows ran side by side; the path tells them one after another.
        order = np.lexsort((corners[:, 1], corners[:, 0]))
        corners, entropies, steps = corners[order], entropies[order], steps[order]
        pmfs = pmfs[order]
    return FocusPath(
        corners=corners,
        entropies=entropies,
        steps=steps,
        grid=grid,
        pmfs=pmfs,
        shape=shape,
        fusion=fusion,
    )


class CropLook:
    """Looks at an image by cutting out each subarea and showing it to a network.

    Parameters
    ----------
    network : callable
        Crops (B, C, d, d) → logits (B, N, K).
    image : Tensor, shape (C, H, W)
        Normalised image.
    grid : RetinaGrid
        Cells of a subarea.
    margin : int
        Pixels by which corners may lie outside the image; it is reflected there.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        image: torch.Tensor,
        *,
        grid: RetinaGrid,
        margin: int,
    ) -> None:
        shape = (image.shape[-2], image.shape[-1])
        frame = Frame.around(shape, grid=grid, margin=margin)
        # A view of every subarea; indexing it copies just the chosen ones.
        self._subareas = frame.lay(image).unfold(1, grid.d, 1).unfold(2, grid.d, 1)
        self._origin = torch.tensor(frame.origin, device=image.device)
        self._network = network

    def __call__(self, corners: torch.Tensor) -> torch.Tensor:
        """Pmfs (B, N, K) of the subareas at ``corners`` (B, 2)."""
        return self._network(self.crops(corners)).float().softmax(-1)

    def crops(self, corners: torch.Tensor) -> torch.Tensor:
        """Subareas (B, C, d, d) at ``corners`` (B, 2) in pixels of the image."""
        y, x = (corners + self._origin).unbind(1)
        return self._subareas[:, y, x].transpose(0, 1)
