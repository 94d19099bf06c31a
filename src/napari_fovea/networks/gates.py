"""Attention coefficients, marked so that they can be looked at."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Coefficients(nn.Sigmoid):
    """A sigmoid whose outputs are attention: what it passes on lies in [0, 1].

    Every network lets its attention run through one of these for each gate, so
    that all attention of any network is found by type and known by name.

    Parameters
    ----------
    label : str
        What the coefficients weigh, such as ``"gate 1/4"``; unique in its network.
    channels : int
        How many coefficients each pixel has.
    """

    def __init__(self, label: str, *, channels: int = 1) -> None:
        super().__init__()
        self.label = label
        self.channels = channels


class AdditiveGate(nn.Module):
    r"""Additive attention on a skip connection.

    .. math::

        q = \psi^T \tanh(W_x x + W_g g + b) + b_\psi, \quad
        \hat x = \sigma(q) \, x

    Equations (1) and (2) of the recurrent residual attention U-Net's paper.

    Parameters
    ----------
    skip : int
        Channels of the gated feature x.
    signal : int
        Channels of the gating signal g.
    inner : int
        Channels in which the two are added.
    label : str
        Name of the coefficients.
    """

    def __init__(self, skip: int, *, signal: int, inner: int, label: str) -> None:
        super().__init__()
        self.skip = nn.Conv2d(skip, inner, 1, bias=False)
        self.signal = nn.Conv2d(signal, inner, 1)
        self.psi = nn.Conv2d(inner, 1, 1)
        self.coefficients = Coefficients(label)

    def forward(self, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """Gate x (B, skip, H, W) by g (B, signal, H, W)."""
        alpha = self.coefficients(self.psi(torch.tanh(self.skip(x) + self.signal(g))))
        gated: torch.Tensor = alpha * x  # (B, skip, H, W), alpha (B, 1, H, W)
        return gated


def attention_names(network: nn.Module) -> tuple[str, ...]:
    """Names of the attention maps that a network makes, in the order it holds them."""
    return tuple(m.label for m in network.modules() if isinstance(m, Coefficients))


@contextmanager
def capture_attention(
    network: nn.Module,
    names: tuple[str, ...] | None = None,
    *,
    keep: Callable[[str, torch.Tensor], None] | None = None,
) -> Iterator[dict[str, torch.Tensor]]:
    """Keep the attention that a network computes.

    Parameters
    ----------
    network : nn.Module
        Any registered network.
    names : tuple of str, optional
        Which maps to keep, of `attention_names`; all by default.
    keep : callable, optional
        Is given name and coefficients in place of the dictionary, as soon as they
        are made: it may keep less than all of them.

    Yields
    ------
    dict
        Name → coefficients (B, C, h, w) in [0, 1] of the last forward pass,
        detached; empty until the network is called. Nothing is computed that the
        network does not compute anyway.

    Examples
    --------
    >>> with capture_attention(network) as maps:  # doctest: +SKIP
    ...     network(image)
    >>> maps["gate 1/4"].shape  # doctest: +SKIP
    """
    maps: dict[str, torch.Tensor] = {}

    def keeping(label: str) -> object:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            if keep is None:
                maps[label] = output.detach()
            else:
                keep(label, output.detach())

        return hook

    hooks = [
        module.register_forward_hook(keeping(module.label))  # type: ignore[arg-type]
        for module in network.modules()
        if isinstance(module, Coefficients) and (names is None or module.label in names)
    ]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
