"""Networks that are ready on a device, kept from one run to the next."""

from __future__ import annotations

import copy
import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from napari_fovea.device import ran_out

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import nn

_Weights = tuple[tuple[int, int], ...]
_kept: WeakKeyDictionary[
    nn.Module, dict[tuple[torch.device, bool], tuple[_Weights, Loaded]]
] = WeakKeyDictionary()
_keeping = threading.Lock()


def load(network: nn.Module, device: torch.device, *, compiled: bool = False) -> Loaded:
    """Make a network ready on a device, or return it as it was made ready before.

    Parameters
    ----------
    network : nn.Module
        Any registered network; it is left as it is. What was made of it is kept for
        as long as it lives, and made anew after its weights have changed.
    device : torch.device
        Where to.
    compiled : bool
        Whether to compile it when it first runs.

    Returns
    -------
    Loaded
    """
    with _keeping:
        mine = _kept.setdefault(network, {})
        weights = _weights(network)
        known = mine.get((device, compiled))
        if known is None or known[0] != weights:
            mine.pop((device, compiled), None)  # before as much is taken again
            known = (weights, Loaded(network, device, compiled=compiled))
            mine[device, compiled] = known
        return known[1]


class Loaded:
    """A copy of a network that is ready on a device.

    It is folded where the network knows how, and laid out channels last.

    Parameters
    ----------
    network : nn.Module
        What to copy.
    device : torch.device
        Where to.
    compiled : bool
        Whether to compile it when it first runs.

    Attributes
    ----------
    network : nn.Module
        The copy.
    lock : RLock
        To be held by whoever hooks into the copy while it runs: another thread may
        run it too.
    differences : dict
        Largest difference of probabilities by the precision it was measured in.
    fault : str
        Why it could not be compiled, if it was to be.
    """

    def __init__(
        self, network: nn.Module, device: torch.device, *, compiled: bool = False
    ) -> None:
        made: Any = copy.deepcopy(network).eval().to(device)
        if hasattr(made, "folded"):
            made = made.folded()
        made = made.requires_grad_(False)
        self.network: nn.Module = made.to(memory_format=torch.channels_last)
        self.device = device
        self.lock = threading.RLock()
        self.differences: dict[torch.dtype, float] = {}
        self.fault = ""
        self._fast: Callable[..., Any] | None = None
        self._to_compile = compiled

    @property
    def compiled(self) -> bool:
        """Whether it has been compiled."""
        return self._fast is not None

    def run(
        self, batch: torch.Tensor, dtype: torch.dtype, *, plain: bool = False
    ) -> Any:
        """Run the network on a batch.

        Parameters
        ----------
        batch : Tensor of float32, shape (B, C, h, w)
            On the device.
        dtype : torch.dtype
            What to compute in; weights and what comes in are float32.
        plain : bool
            Whether not to run what was compiled, which tells hooks nothing.
        """
        batch = batch.contiguous(memory_format=torch.channels_last)
        with self.lock, torch.inference_mode(), computing_in(dtype, self.device):
            if self._to_compile and not plain:
                self._compile(batch)
            if plain or self._fast is None:
                return self.network(batch)
            return self._fast(batch)

    def _compile(self, batch: torch.Tensor) -> None:
        """Compile and run once; where that is not possible, it runs as it is."""
        self._to_compile = False
        # On CUDA the calls of a network are recorded and replayed as one.
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        try:
            fast = torch.compile(self.network, mode=mode)
            fast(batch)
        except Exception as error:  # compilers and their absence raise anything
            if ran_out(error):
                raise
            self.fault = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
        else:
            self._fast = fast


def computing_in(
    dtype: torch.dtype, device: torch.device
) -> AbstractContextManager[Any]:
    """Let a network compute in 16 bits where that is known to do no harm."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)


def _weights(network: nn.Module) -> _Weights:
    """Where weights lie and how often they were written to: changed if these are."""
    tensors = (*network.parameters(), *network.buffers())
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
