"""What decided an object or a place, for networks that move no focus."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from napari_fovea import device as devices
from napari_fovea.errors import AttentionError
from napari_fovea.images import read_planes, resize, to_tensor
from napari_fovea.inference.attention import wanted
from napari_fovea.inference.dense import ready
from napari_fovea.inference.diameter import estimated
from napari_fovea.inference.region import locate
from napari_fovea.inference.sizes import fitting, measured, resized, resizing
from napari_fovea.inference.target import ask, class_of
from napari_fovea.inference.window import Window
from napari_fovea.models import Model
from napari_fovea.networks import PatchCenterConfig, RetinaConfig
from napari_fovea.networks.gates import Coefficients

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import ArrayLike
    from torch import nn

    from napari_fovea.inference.attention import Wanted
    from napari_fovea.inference.result import AttentionMap


class Evidence(NamedTuple):
    """How much speaks for a class: its name, and its mean log-odds over the region."""

    name: str
    log_odds: float


class Influence(NamedTuple):
    """How much one attention did: its name, a signed amount, its share in [0, 1]."""

    name: str
    amount: float
    share: float


@dataclass(frozen=True)
class Explanation:
    """What decided a region; see `explain`.

    Attributes
    ----------
    target : Evidence
        What was asked: the class, and the evidence for it.
    saliency : AttentionMap
        Gradient × input of the window, shape (h, w), at the network's resolution.
    influence : tuple of Influence
        Of every attention of the network, the largest share first.
    maps : tuple of AttentionMap
        Where each attention that was asked for did it.
    box : tuple of float or None
        Top, left, bottom, right in pixels of the user's image of the object that a
        detector was asked about, by the convention of `FocusPath.cells`.
    """

    target: Evidence
    saliency: AttentionMap
    influence: tuple[Influence, ...]
    maps: tuple[AttentionMap, ...] = ()
    box: tuple[float, float, float, float] | None = None


def explain(
    image: ArrayLike,
    model: Model | str | os.PathLike[str],
    *,
    region: ArrayLike,
    target: int | str | None = None,
    names: Iterable[str] = (),
    axes: str | None = None,
    rgb: bool | None = None,
    diameter: float | Literal["auto"] | None = None,
    pixel_size: float | None = None,
    limits: tuple[float, float] | None = None,
    side: int = 512,
    device: str = "auto",
    cancelled: Callable[[], bool] = lambda: False,
) -> Explanation:
    r"""Tell what decided the class of a place or an object.

    The evidence T is the mean over the region's pixels of the log-odds of a class,
    :math:`\log p - \log(1 - p)`. A detector is asked anew at the box of the object
    that it shows there, or where it shows none, at a box around the region. The
    network runs once forward and once backward, on a window around the region.

    ``saliency`` is the input times the gradient of T, summed over channels:

    .. math:: \sum_c x_c \, \partial T / \partial x_c

    Every attention α has the amount :math:`a = \sum \alpha \, \partial T /
    \partial \alpha`, over all its places and channels: were all of α a little larger,
    :math:`(1 + \varepsilon) \alpha`, T would rise by about :math:`\varepsilon a`. Its
    share is :math:`|a|` over the sum of all attentions' :math:`|a|`; the shares sum to
    1, unless all amounts are 0. Its map tells where: the same products, summed over
    channels alone.

    All this is first order and local: it tells how T answers to small changes of
    this image, not what would happen if something were taken away. It is no cause
    and no proof. The input is 0 where the image is as dark as the dark end of the
    normalisation, so pixels there have no saliency however much they matter, and on
    bright ground it is the dark object that has little. Amounts of attentions that
    act one after the other count the same evidence more than once. Of what lies
    beyond the window nothing is asked, and a network that looks at all it sees at
    once, by squeeze and excitation, may answer a little otherwise than on the whole.

    Parameters
    ----------
    image : array_like
        One plane, (H, W) or (H, W, C), of any numeric type. It is not changed.
    model : Model, str or path-like
        A model without a focus, its name, or its file; see `deciding` for others.
    region : array_like
        A mask (H, W) of bool, or a point (y, x), which means the pixel it lies in.
    target : int or str, optional
        Number or name of the class; by default the one the network gives the region.
    names : iterable of str
        Attention whose maps are wanted, of `attends`; ``"name [3]"`` is a channel.
    axes, rgb, diameter, pixel_size : optional
        As in `segment`: the network is shown the same pixels.
    limits : tuple of float, optional
        Intensities that become 0 and 1; by default those of this plane. For a plane
        of a stack, give the stack's: ``model.normalisation.limits``.
    side : int
        Side of the window in pixels as the network is shown them, which bounds the
        memory. A larger region gets a window that holds it. Models that say how
        much they should see at once get no more.
    device : str
        ``"auto"`` or a torch device.
    cancelled : callable
        Asked before the network runs.

    Returns
    -------
    Explanation

    Raises
    ------
    AttentionError
        If the region, class or attention does not exist, the model moves a focus or
        sees only patches, or it was cancelled.
    FoveaError
        If the image, the model or a setting cannot be used.
    """
    planes = read_planes(image, axes=axes, rgb=rgb)
    if len(planes) != 1:
        raise AttentionError(
            f"The image is a stack of {len(planes)} planes; expected one plane, (H, W) "
            "or (H, W, C): choose the one that the region lies in."
        )
    if not isinstance(model, Model):
        model = Model.load(model)
    _check_kind(model)
    _check_settings(side, limits)
    planes = planes.for_network(model.channels)
    label, asked_for = class_of(model, target), wanted(model, names)
    where = devices.pick(device)
    measures = measured(model, diameter=diameter, pixel_size=pixel_size)
    known = None if diameter == "auto" else diameter
    factor = resizing(model, planes.shape, diameter=known, pixel_size=pixel_size)
    limits = limits or model.normalisation.limits(planes)
    pixels = to_tensor(
        planes.data[0], limits=limits, channels=model.channels, device=where
    )
    if measures:
        factor = fitting(model, estimated(pixels, model, device, cancelled=cancelled))
    height, width = resized(planes.shape, factor)
    place = locate(region, shape=planes.shape, resized=(height, width))
    window = Window.around(
        place, (height, width), model=model, side=side, shape=planes.shape
    )
    with torch.inference_mode(False), torch.enable_grad():
        x = window.cut(resize(pixels, (height, width)))
        network = ready(model, where).requires_grad_(False)
        if cancelled():
            raise AttentionError(
                "The question was cancelled before the network ran; ask again."
            )
        with _attending(network) as alphas, _Roots():
            asked = ask(network, model, x, window.inside(place), label)
        slopes: tuple[torch.Tensor | None, ...] = torch.autograd.grad(
            asked.log_odds, [x, *alphas.values()], allow_unused=True
        )
    with torch.no_grad():
        products = {
            name: torch.zeros_like(alpha) if slope is None else alpha * slope
            for (name, alpha), slope in zip(alphas.items(), slopes[1:], strict=True)
        }
        assert slopes[0] is not None
        saliency = (x * slopes[0])[0].sum(0).detach().cpu().numpy()
    return Explanation(
        target=Evidence(model.classes[asked.label], float(asked.log_odds.detach())),
        saliency=window.lay("saliency", saliency),
        influence=_influence(products),
        maps=tuple(_map(w, products[w.of], window) for w in asked_for),
        box=None if asked.box is None else window.on_image(asked.box),
    )


@contextmanager
def _attending(network: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Keep every attention with its graph; see `capture_attention` for without."""
    alphas: dict[str, torch.Tensor] = {}

    def keep(module: Coefficients, _: object, output: torch.Tensor) -> None:
        alphas[module.label] = output

    hooks = [
        part.register_forward_hook(keep)
        for part in network.modules()
        if isinstance(part, Coefficients)
    ]
    try:
        yield alphas
    finally:
        for hook in hooks:
            hook.remove()


class _Roots(TorchFunctionMode):
    """Roots whose slope at 0 is 0 rather than infinite.

    Adapted networks read slopes and spreads of the image, which are roots of 0 where
    it is flat; one infinite slope makes all around it NaN.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        _types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.sqrt:
            (x,) = args
            return torch.where(x > 0, x, 1).sqrt() * (x > 0)
        return func(*args, **(kwargs or {}))


def _influence(products: dict[str, torch.Tensor]) -> tuple[Influence, ...]:
    amounts = {name: float(p.sum()) for name, p in products.items()}
    total = math.fsum(abs(a) for a in amounts.values())
    every = [
        Influence(name, amount, abs(amount) / total if total else 0.0)
        for name, amount in amounts.items()
    ]
    return tuple(sorted(every, key=lambda i: -i.share))


def _map(asked: Wanted, product: torch.Tensor, window: Window) -> AttentionMap:
    """Sum over channels, or take one; what lies in the padding is left out."""
    own = product[0].sum(0) if asked.channel is None else product[0, asked.channel]
    down, right = stride = window.stride(product.shape)
    rows, columns = math.ceil(window.height / down), math.ceil(window.width / right)
    array = own[:rows, :columns].float().cpu().numpy()
    return window.lay(asked.name, array, stride)


def _check_kind(model: Model) -> None:
    if model.members:
        raise AttentionError(
            f"Model {model.name!r} is an ensemble of networks that look in different "
            "ways; expected one of them: choose "
            f"{' or '.join(m.name for m in model.members)}."
        )
    if isinstance(model.config, RetinaConfig):
        raise AttentionError(
            f"Model {model.name!r} moves a focus; expected a network that sees all at "
            "once: ask its focus path instead, which knows exactly."
        )
    if isinstance(model.config, PatchCenterConfig):
        raise AttentionError(
            f"Model {model.name!r} classifies patches one by one and has neither a map "
            "nor attention to ask; expected a network that sees all at once: choose "
            "another model."
        )


def _check_settings(side: int, limits: tuple[float, float] | None) -> None:
    if side < 1:
        raise AttentionError(
            f"The side of the window is {side}; expected 1 or more: leave it out."
        )
    if limits is not None and not -math.inf < limits[0] < limits[1] < math.inf:
        raise AttentionError(
            f"The limits are {limits}; expected two finite intensities, the smaller "
            "first: leave them out."
        )
