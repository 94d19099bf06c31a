"""How a model's network is run on a backend, and in which precision."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from napari_fovea.device import (
    PRECISIONS,
    as_backend,
    fast_precision,
    pick,
    ran_out,
)
from napari_fovea.inference.loaded import Loaded, computing_in, load
from napari_fovea.inference.retreat import CPU, Retreat, exhausted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from napari_fovea.device import Backend
    from napari_fovea.models import Model

TOLERANCE = 0.05
"""Largest difference of a probability that 16 bits may make."""

WINDOW = 256
"""Side in pixels of what is read in both precisions."""


class Runner:
    """Runs the network of a model on a backend.

    Parameters
    ----------
    model : Model
        Any model.
    device : str, torch.device or Backend
        Where and how; see `device.as_backend`.
    compiles : bool
        Whether networks of this kind can be compiled.

    Attributes
    ----------
    device : torch.device
        Where it runs.
    retreat : Retreat
        What was done where memory ran out.

    Raises
    ------
    DeviceError
        If the device is not there, or computes wrongly.
    """

    def __init__(
        self,
        model: Model,
        device: str | torch.device | Backend,
        *,
        compiles: bool = True,
    ) -> None:
        self.backend = as_backend(device)
        self.device = (
            device if isinstance(device, torch.device) else pick(self.backend.device)
        )
        self.retreat = Retreat()
        self._model = model
        self._compiled = self.backend.compiled and compiles
        self._dtype = PRECISIONS.get(self.backend.precision)
        self._difference: float | None = None

    @property
    def loaded(self) -> Loaded:
        """The network, ready on the device."""
        return load(self._model.network, self.device, compiled=self._compiled)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in: float32 unless something else was asked or settled."""
        return self._dtype or torch.float32

    @property
    def precision(self) -> str:
        """Name of what it computes in."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def told(self) -> dict[str, Any]:
        """How it was run, for the provenance."""
        told: dict[str, Any] = {"precision": self.precision}
        if self._difference is not None:
            finite = math.isfinite(self._difference)
            told["precision_difference"] = (
                round(self._difference, 6) if finite else "not finite"
            )
        if self._compiled:
            loaded = self.loaded
            told["compiled"] = loaded.compiled
            if loaded.fault:
                told["not_compiled"] = loaded.fault
        elif self.backend.compiled:
            told["compiled"] = False
            told["not_compiled"] = "what it computes depends on what it finds"
        return told | {"recovered": list(self.retreat.told)}

    def fall_back(self) -> bool:
        """Go on with the CPU; tell whether that is somewhere else."""
        if self.device == CPU:
            return False
        self.retreat.step("", self.device, CPU)
        self.retreat.most = None
        self.device, self._dtype = CPU, torch.float32
        return True

    def in_parts(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Make of the network a function of many small images.

        Returns
        -------
        callable
            Images (B, C, h, w) → what the network makes of them, in float32 and where
            they lie. If memory runs out, they are seen in smaller batches from then
            on, and at last on the CPU.

        Raises
        ------
        OutOfMemoryError
            When it is called, and not even one image fits.
        """

        def see(images: torch.Tensor) -> torch.Tensor:
            parts: list[torch.Tensor] = []
            done = 0
            while done < len(images):
                some = images[done : done + (self.retreat.most or len(images))]
                try:
                    out = self.loaded.run(some.to(self.device), self.dtype)
                    parts.append(out.to(images.device).float())
                    done += len(some)
                    continue
                except Exception as error:
                    if not ran_out(error):
                        raise
                if not self.retreat.batch(len(some)) and not self.fall_back():
                    raise exhausted(self.device, "one crop")
            return torch.cat(parts) if len(parts) != 1 else parts[0]

        return see

    def settle(
        self,
        image: torch.Tensor,
        answer: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    ) -> None:
        """Choose the precision, unless it was asked for or chosen before.

        It is the device's fastest if that changes no probability of the part of the
        image that has most contrast by more than `TOLERANCE`, else float32.

        Parameters
        ----------
        image : Tensor of float32, shape (C, H, W)
            A plane.
        answer : callable
            Runs the network on (1, C, h, w), and tells probabilities.
        """
        if self._dtype is not None:
            return
        self._dtype = torch.float32
        fast = fast_precision(self.device)
        if fast == torch.float32:
            return
        loaded = self.loaded
        if fast not in loaded.differences:
            window = most_contrasted(image).to(self.device)[None]
            window = window.contiguous(memory_format=torch.channels_last)
            with loaded.lock, torch.inference_mode():
                exact = answer(loaded.network, window).float()
                with computing_in(fast, self.device):
                    rough = answer(loaded.network, window).float()
            difference = (rough - exact).abs().max()
            loaded.differences[fast] = float(difference)
        self._difference = loaded.differences[fast]
        if self._difference <= TOLERANCE:  # not so where it is NaN
            self._dtype = fast


class Runners:
    """The runners of several networks, told of and sent elsewhere as one.

    Parameters
    ----------
    runners : sequence of Runner
        At least one.
    """

    def __init__(self, runners: Sequence[Runner | Runners]) -> None:
        self._runners = tuple(runners)

    @property
    def device(self) -> torch.device:
        """Where they run."""
        return self._runners[0].device

    @property
    def retreat(self) -> Retreat:
        """What any of them did where memory ran out."""
        return Retreat([step for r in self._runners for step in r.retreat.told])

    @property
    def precision(self) -> str:
        """Name of what they compute in, float32 where they differ."""
        each = {runner.precision for runner in self._runners}
        return each.pop() if len(each) == 1 else "float32"

    @property
    def told(self) -> dict[str, Any]:
        """How they were run, for the provenance."""
        return {
            "precision": [runner.precision for runner in self._runners],
            "recovered": self.retreat.told,
        }

    def fall_back(self) -> bool:
        """Go on with the CPU; tell whether that is somewhere else for any."""
        fell = [runner.fall_back() for runner in self._runners]
        return any(fell)


def most_contrasted(image: torch.Tensor, side: int = WINDOW) -> torch.Tensor:
    """Cut the window of most contrast from a plane (C, H, W), or return a small one."""
    h, w = (min(side, n) for n in image.shape[1:])
    grey = image.mean(0)[None, None]
    step = (max(1, h // 2), max(1, w // 2))
    mean = functional.avg_pool2d(grey, (h, w), stride=step)
    spread = functional.avg_pool2d(grey**2, (h, w), stride=step) - mean**2
    place = int(spread.argmax())
    top, left = (
        i * s for i, s in zip(divmod(place, spread.shape[3]), step, strict=True)
    )
    return image[:, top : top + h, left : left + w]
