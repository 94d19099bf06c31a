"""What decided a place, by gradients: against differences, and where it lies."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from conftest import tiny_model
from learning import NUCLEI, made, same, weights
from napari_fovea.errors import AttentionError, FoveaError
from napari_fovea.images import read_planes, to_tensor
from napari_fovea.inference import Explanation, complete, explain, segment
from napari_fovea.models import Model
from napari_fovea.networks import Adapted, DenseConfig, R2AttentionUNet, attention_names
from napari_fovea.networks.gates import Coefficients
from small_networks import DENSE

if TYPE_CHECKING:
    from collections.abc import Iterator

R2 = DENSE["r2-attention-unet"]
KINDS: dict[str, dict[str, Any]] = {
    "focusnet": {},
    "r2-attention-unet": {},
    "focusnet-plus": {},
    "mask-rcnn": {},
    "ensemble": {"member": "r2-attention-unet", "settings": R2},
    "adapted": {"base": "r2-attention-unet", "settings": R2},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads of networks this small mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def of_kind(name: str, *, outputs: int = 2) -> Model:
    changes = dict(KINDS[name])
    if "settings" in changes:
        changes["settings"] = changes["settings"] | {"classes": outputs}
    if "base" in changes:
        changes["belongs"] = (0, 1, 1)[:outputs]
    return calmed(made(name, outputs=outputs, **changes))


def calmed(model: Model) -> Model:
    """Bring logits near 1: untrained networks are surer than numbers can tell."""
    for part in model.network.modules():
        if isinstance(part, R2AttentionUNet):
            part.out.weight.mul_(1e-4)
        if isinstance(part, Adapted):
            for read in list(part.reads)[1:]:
                read.weight.mul_(1e-3)
    return model


class Toy(nn.Module):
    """Any layers as a network of one logit."""

    def __init__(self, *layers: nn.Module, channels: int = 1) -> None:
        super().__init__()
        self.config = DenseConfig(channels=channels, classes=2)
        self.layers = nn.Sequential(*layers)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Gated(nn.Module):
    """The image, gated by attention that sees blocks of 4 × 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = Coefficients("gate")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        alpha = self.coefficients(functional.avg_pool2d(x, 4))
        return x * functional.interpolate(alpha, scale_factor=4)


class Exact(TorchFunctionMode):
    """Let networks that ask for single precision have double."""

    def __torch_function__(
        self, func: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        return func(*args, **(kwargs or {}))


def toy(network: nn.Module, **settings: Any) -> Model:
    return Model("toy", network, NUCLEI, (0, 1), **settings)


def disc(picture: np.ndarray, y: int = 15, x: int = 20) -> np.ndarray:
    rows, columns = np.indices(picture.shape[:2])
    mask: np.ndarray = (rows - y) ** 2 + (columns - x) ** 2 < 49
    return mask


def shown(picture: np.ndarray, model: Model) -> torch.Tensor:
    planes = read_planes(picture)
    limits = model.normalisation.limits(planes)
    return to_tensor(planes.data[0], limits=limits, channels=model.channels)[None]


def evidence(
    network: nn.Module, model: Model, x: torch.Tensor, mask: np.ndarray, box: Any
) -> float:
    """Mean log-odds of the last class, literally and in double precision."""
    with torch.no_grad(), Exact():
        if box is None:
            logits = network(x.double())[0][:, torch.from_numpy(mask)]
        else:
            top, left, bottom, right = (v + 0.5 for v in box)
            boxes = [torch.tensor([[left, top, right, bottom]]).double()]
            logits = network.box_logits(network.features(x.double()), boxes).T
        if len(logits) == 1:
            logits = torch.cat([-logits / 2, logits / 2])
        classes = model.class_probabilities(logits.softmax(0))
    return float((classes[-1].log() - (1 - classes[-1]).log()).mean())


def centres(explanation: Explanation) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels of the saliency that are not 0 lie on the image."""
    found = explanation.saliency
    rows, columns = np.abs(found.array).nonzero()
    y, x = (
        np.unique(i) * s + o
        for i, s, o in zip((rows, columns), found.scale, found.offset, strict=True)
    )
    return y, x


# -- what is computed --------------------------------------------------------------


def test_a_linear_network_is_explained_in_full() -> None:
    convolution = nn.Conv2d(3, 1, 5, padding=2)
    model = toy(Toy(convolution, channels=3))
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    mask = np.zeros((40, 50), bool)
    mask[10:14, 20:30] = True
    found = explain(image, model, region=mask, target=1, device="cpu")
    bias = float(convolution.bias)
    np.testing.assert_allclose(
        found.saliency.array.sum(), found.target.log_odds - bias, rtol=1e-5
    )
    y, x = centres(found)
    assert (y.min(), y.max(), x.min(), x.max()) == (8, 15, 18, 31)
    assert found.influence == ()
    assert found.maps == ()


@pytest.mark.parametrize("name", KINDS)
def test_every_attention_does_what_a_small_change_of_it_does(
    name: str, picture: np.ndarray
) -> None:
    model = of_kind(name, outputs=2 if name == "mask-rcnn" else 3)
    before = weights(model)
    mask = disc(picture)
    names = attention_names(model.network)
    found = explain(picture, model, region=mask, target=1, names=names, device="cpu")

    assert found.saliency.array.shape == picture.shape
    assert found.saliency.array.dtype == np.float32
    assert np.isfinite(found.saliency.array).all()
    assert np.abs(found.saliency.array).max() > 0
    assert sorted(i.name for i in found.influence) == sorted(names)
    shares = [i.share for i in found.influence]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert [m.name for m in found.maps] == list(names)

    x = shown(picture, model)
    double = copy.deepcopy(model.network).double()
    here = evidence(double, model, x, mask, found.box)
    assert found.target.name == "nucleus"
    assert found.target.log_odds == pytest.approx(here, abs=1e-4)

    amounts = {i.name: i.amount for i in found.influence}
    largest = max(abs(a) for a in amounts.values())
    for part in double.modules():
        if not isinstance(part, Coefficients):
            continue
        changed = []
        for change in (1.0001, 0.9999):
            hook = part.register_forward_hook(lambda _, __, out, by=change: out * by)
            changed.append(evidence(double, model, x, mask, found.box))
            hook.remove()
        slope = (changed[0] - changed[1]) / 2e-4
        assert amounts[part.label] == pytest.approx(slope, abs=2e-3 * largest)
    assert largest > 2e-3

    assert same(before, weights(model))
    for part in model.network.modules():
        assert not part._forward_hooks
    assert not any(p.requires_grad for p in model.network.parameters())
    assert all(p.grad is None for p in model.network.parameters())


@pytest.mark.parametrize("name", ["focusnet", "r2-attention-unet", "ensemble"])
def test_maps_say_where_the_amounts_come_from(name: str) -> None:
    picture = np.random.default_rng(1).integers(0, 255, (64, 96)).astype(np.uint8)
    model = of_kind(name)
    names = attention_names(model.network)
    channel = f"{names[0]} [0]"
    found = explain(
        picture, model, region=(30, 40), names=[*names, channel], device="cpu"
    )
    amounts = {i.name: i.amount for i in found.influence}
    for one in found.maps[:-1]:  # nothing is padded here, so nothing is left out
        assert one.array.sum() == pytest.approx(amounts[one.name], rel=1e-4, abs=1e-6)
        down, right = (
            n / m for n, m in zip(picture.shape, one.array.shape, strict=True)
        )
        assert one.scale == (down, right)
        assert one.offset == ((down - 1) / 2, (right - 1) / 2)
    assert found.maps[-1].name == channel
    assert found.maps[-1].array.shape == found.maps[0].array.shape
    if name != "focusnet":  # whose coefficients have a single channel
        np.testing.assert_array_equal(found.maps[-1].array, found.maps[0].array)
    else:
        assert not np.allclose(found.maps[-1].array, found.maps[0].array)


def test_classes_are_asked_by_number_or_name(picture: np.ndarray) -> None:
    model = made("focusnet", outputs=3)
    mask = disc(picture)
    one, named, other = (
        explain(picture, model, region=mask, target=t, device="cpu")
        for t in (1, "nucleus", 0)
    )
    assert one.target == named.target
    assert other.target.name == "background"
    assert other.target.log_odds == pytest.approx(-one.target.log_odds, abs=1e-5)
    np.testing.assert_allclose(
        other.saliency.array, -one.saliency.array, rtol=1e-3, atol=1e-7
    )
    probable = max(one.target.log_odds, other.target.log_odds)
    found = explain(picture, model, region=mask, device="cpu")
    assert found.target.log_odds == probable


@pytest.mark.parametrize("outputs", [2, 3])
@pytest.mark.parametrize("name", ["focusnet-plus", "ensemble"])
def test_the_evidence_is_that_of_the_segmentation(
    name: str, outputs: int, picture: np.ndarray
) -> None:
    model = of_kind(name, outputs=outputs)
    stack = np.stack([picture, picture // 2])
    result = complete(segment(stack, model, device="cpu"))
    limits = model.normalisation.limits(read_planes(stack))
    for y, x in ((15, 20), (3, 70)):
        found = explain(
            stack[1], model, region=(y, x), target=1, limits=limits, device="cpu"
        )
        probability = 1 / (1 + np.exp(-found.target.log_odds))
        assert probability == pytest.approx(
            float(result.probabilities[1, 1, y, x]), abs=1e-4
        )


def test_evidence_is_told_where_probabilities_round_to_1() -> None:
    convolution = nn.Conv2d(1, 1, 1)
    nn.init.constant_(convolution.weight, 300.0)
    model = toy(Toy(convolution))
    image = np.zeros((20, 30), np.uint8)
    image[5:9, 5:9] = 200
    found = explain(image, model, region=(6, 6), device="cpu")
    assert found.target.name == "nucleus"
    assert found.target.log_odds > 250
    assert found.saliency.array[6, 6] == pytest.approx(300, rel=1e-3)


def test_sure_ensembles_answer_too() -> None:
    image = np.zeros((48, 48), np.uint8)
    image[20:28, 20:28] = 90
    model = of_kind("ensemble")
    for member in model.network.members:
        member.out.bias.fill_(30.0)  # past what their mean probability can tell
    found = explain(image, model, region=image > 0, device="cpu")
    assert found.target.log_odds == pytest.approx(30, abs=3)
    assert np.abs(found.saliency.array).max() > 0


def test_flat_images_leave_slopes_finite() -> None:
    image = np.zeros((48, 48), np.uint8)
    image[20:28, 20:28] = 90
    model = of_kind("adapted")
    found = explain(image, model, region=image > 0, device="cpu")
    assert np.isfinite(found.saliency.array).all()
    assert all(np.isfinite(i.amount) for i in found.influence)


def test_a_caller_without_gradients_is_answered(picture: np.ndarray) -> None:
    model = made("r2-attention-unet")
    outside = explain(picture, model, region=(15, 20), device="cpu")
    with torch.inference_mode():
        inside = explain(picture, model, region=(15, 20), device="cpu")
    np.testing.assert_array_equal(outside.saliency.array, inside.saliency.array)


def test_a_network_in_training_is_left_in_training(picture: np.ndarray) -> None:
    model = made("focusnet")
    still = explain(picture, model, region=(15, 20), device="cpu")
    model.network.train().requires_grad_(True)
    before = weights(model)
    found = explain(picture, model, region=(15, 20), device="cpu")
    np.testing.assert_array_equal(found.saliency.array, still.saliency.array)
    assert model.network.training
    assert all(p.requires_grad and p.grad is None for p in model.network.parameters())
    assert same(before, weights(model))  # statistics of normalisations too


# -- where it lies -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("diameter", "scale"), [(None, 1.0), (6.0, 0.5), (24.0, 2.0), (36.0, 3.0)]
)
def test_a_bright_square_explains_itself_where_it_is(
    diameter: float | None, scale: float
) -> None:
    model = toy(Toy(nn.Conv2d(1, 1, 1)), object_diameter=12.0)
    image = np.zeros((60, 84), np.uint8)
    square = (slice(18, 30), slice(42, 60))
    image[square] = 200
    region = image > 0
    found = explain(image, model, region=region, diameter=diameter, device="cpu")
    assert found.saliency.scale == (scale, scale)
    y, x = centres(found)
    # The outermost pixels end where the square ends: at the edges of its pixels.
    half = scale / 2
    assert (y.min() - half, y.max() + half) == (17.5, 29.5)
    assert (x.min() - half, x.max() + half) == (41.5, 59.5)


def test_a_window_is_laid_where_it_was_cut() -> None:
    model = toy(Toy(nn.Conv2d(1, 1, 1)), object_diameter=12.0)
    image = np.zeros((300, 420), np.uint8)
    image[201:213, 303:321] = 200
    found = explain(
        image, model, region=image > 0, diameter=24.0, side=40, device="cpu"
    )
    assert found.saliency.array.shape == (40, 40)
    y, x = centres(found)
    assert (y.min(), y.max()) == (201.5 - 1, 211.5 + 1)  # straddled by odd edges
    assert (x.min(), x.max()) == (303.5 - 1, 319.5 + 1)


@pytest.mark.parametrize("diameter", [None, 6.0])
def test_maps_of_attention_lie_where_their_cells_do(diameter: float | None) -> None:
    model = toy(Toy(Gated(), nn.Conv2d(1, 1, 1)), object_diameter=12.0)
    model.network.multiple = 4
    image = np.full((402, 502), 10, np.uint8)
    image[200:208, 300:316] = 200
    found = explain(
        image,
        model,
        region=image > 100,
        names=["gate"],
        side=64,
        diameter=diameter,
        device="cpu",
    )
    (gate,) = found.maps
    stride = 4.0 if diameter is None else 2.0
    assert gate.scale == (stride, stride)
    cells = np.argwhere(gate.array != 0)
    first, last = (f(cells) * stride + gate.offset for f in (_first, _last))
    np.testing.assert_allclose(first - stride / 2, (199.5, 299.5))
    np.testing.assert_allclose(last + stride / 2, (207.5, 315.5))
    assert found.influence[0].share == 1


@pytest.mark.parametrize("name", ["focusnet", "mask-rcnn", "adapted"])
def test_maps_lie_where_those_of_a_segmentation_do(
    name: str, picture: np.ndarray
) -> None:
    model = replace(of_kind(name), object_diameter=12.0)
    names = attention_names(model.network)
    run = segment(picture, model, attention=names, diameter=9.0, device="cpu")
    result = complete(run)
    found = explain(
        picture, model, region=(15, 20), names=names, diameter=9.0, device="cpu"
    )
    for ours, theirs in zip(found.maps, result.attention, strict=True):
        assert ours.name == theirs.name
        assert ours.array.shape == theirs.array.shape
        assert ours.scale == pytest.approx(theirs.scale)
        assert ours.offset == pytest.approx(theirs.offset)


def _first(cells: np.ndarray) -> np.ndarray:
    return cells.min(0)


def _last(cells: np.ndarray) -> np.ndarray:
    return cells.max(0)


@pytest.mark.parametrize("at", [(101, 120), (12, 5), (200, 221)])
def test_a_window_tells_what_the_whole_plane_tells(at: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = made("r2-attention-unet", depth=3)
    image = np.random.default_rng(2).integers(0, 255, (211, 230)).astype(np.uint8)
    mask = np.zeros(image.shape, bool)
    mask[at[0] : at[0] + 5, at[1] : at[1] + 7] = True
    whole, part = (
        explain(image, model, region=mask, side=side, names=["skip 1/2"], device="cpu")
        for side in (512, 136)
    )
    assert whole.saliency.array.shape == image.shape
    assert max(part.saliency.array.shape) <= 136
    assert part.target.log_odds == pytest.approx(whole.target.log_odds, rel=1e-5)
    assert part.influence[0].amount == pytest.approx(
        whole.influence[0].amount, rel=1e-3
    )
    for a, b in ((whole.saliency, part.saliency), (whole.maps[0], part.maps[0])):
        start = (np.array(b.offset) - a.offset) / a.scale
        y, x = np.rint(start).astype(int)
        np.testing.assert_allclose(start, (y, x))
        h, w = b.array.shape
        most = np.abs(a.array).max()
        inner = a.array[y : y + h, x : x + w]
        np.testing.assert_allclose(b.array, inner, atol=1e-4 * most)
        assert np.abs(a.array).sum() == pytest.approx(np.abs(inner).sum(), rel=1e-5)


def test_models_see_no_more_at_once_than_they_say() -> None:
    model = replace(made("focusnet"), scan={"tile": 64})
    image = np.random.default_rng(0).integers(0, 255, (200, 200)).astype(np.uint8)
    small = explain(image, model, region=(100, 100), device="cpu")
    assert small.saliency.array.shape == (64, 64)
    mask = np.zeros(image.shape, bool)
    mask[40:140, 40:140] = True  # must fit all the same
    large = explain(image, model, region=mask, device="cpu")
    top, left = large.saliency.offset
    assert top < 40
    assert left < 40
    assert min(large.saliency.array.shape) + min(top, left) > 140


# -- detectors ---------------------------------------------------------------------


def detector(bias: float) -> Model:
    model = made("mask-rcnn")
    model.network.boxes.logits.bias.copy_(torch.tensor([-bias, bias]))
    return model


def test_a_detector_is_asked_about_the_object_that_is_shown(
    picture: np.ndarray,
) -> None:
    model = detector(2.0)
    result = complete(segment(picture, model, device="cpu"))
    mask = result.instances == 1
    found = explain(picture, model, region=mask, device="cpu")
    assert found.target.name == "nucleus"
    assert found.box is not None
    top, left, bottom, right = found.box
    y, x = mask.nonzero()
    assert top - 1 <= y.min() <= y.max() <= bottom + 1
    assert left - 1 <= x.min() <= x.max() <= right + 1


def test_where_a_detector_shows_nothing_the_place_itself_is_asked(
    picture: np.ndarray,
) -> None:
    model = detector(-3.0)
    for at, box in (
        ((30, 40), (24, 34, 36, 46)),
        ((0, 89), (-0.5, 83, 6, 89.5)),  # held within the image
    ):
        found = explain(picture, model, region=at, device="cpu")
        assert found.target.name == "background"
        assert found.box == box
    mask = disc(picture)
    found = explain(picture, model, region=mask, target="nucleus", device="cpu")
    assert found.box == (8.5, 13.5, 21.5, 26.5)
    assert found.target.name == "nucleus"
    assert found.target.log_odds < 0


# -- what cannot be asked ----------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"region": (70, 3)}, "lies outside the image of 70×90 pixels"),
        ({"region": (-0.6, 3)}, "lies outside"),
        ({"region": (np.nan, 3)}, "finite numbers"),
        ({"region": np.zeros((70, 90), bool)}, "region is empty"),
        ({"region": np.ones((90, 70), bool)}, r"shape \(90, 70\)"),
        ({"region": np.ones((70, 90), int)}, "type int64"),
        ({"region": (1, 2, 3)}, "or a point"),
        ({"target": 2}, r"one of 0 \(background\), 1 \(nucleus\)"),
        ({"target": -1}, "knows no class -1"),
        ({"target": "border"}, "knows no class 'border'"),
        ({"names": ["gate"]}, "makes no attention map 'gate'"),
        ({"side": 0}, "side of the window is 0"),
        ({"limits": (3.0, 3.0)}, "two finite intensities"),
        ({"limits": (0.0, np.nan)}, "two finite intensities"),
        ({"cancelled": lambda: True}, "cancelled"),
    ],
)
def test_a_bad_question_gets_one_sentence(
    asked: dict[str, Any], says: str, picture: np.ndarray
) -> None:
    model = made("r2-attention-unet")
    with pytest.raises(AttentionError, match=says) as caught:
        explain(picture, model, **({"region": (3, 3), "device": "cpu"} | asked))
    _is_one_sentence(caught.value)


def _is_one_sentence(error: Exception) -> None:
    assert str(error).endswith(".")
    assert "\n" not in str(error)


def test_models_that_cannot_be_asked_say_so(picture: np.ndarray) -> None:
    for model, says in (
        (tiny_model(), "moves a focus"),
        (made("patch-center"), "neither a map nor attention"),
    ):
        with pytest.raises(AttentionError, match=says) as caught:
            explain(picture, model, region=(3, 3), device="cpu")
        _is_one_sentence(caught.value)
    with pytest.raises(AttentionError, match="stack of 2 planes"):
        explain(np.stack([picture] * 2), made(), region=(3, 3), device="cpu")
    with pytest.raises(FoveaError, match="constant"):
        explain(np.ones((30, 30)), made(), region=(3, 3), device="cpu")
    with pytest.raises(FoveaError, match="diameter"):
        explain(picture, made(), region=(3, 3), diameter=9.0, device="cpu")
