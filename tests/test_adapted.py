"""Networks that read evidence beside their opinion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from conftest import tiny_model
from napari_fovea.errors import ModelError
from napari_fovea.models import Model
from napari_fovea.networks import (
    attention_names,
    build,
    capture_attention,
    probabilities,
    system_of,
    validate,
)
from napari_fovea.networks.adapted import SIGMAS, ImageFeatures, class_sums, opinion
from napari_fovea.training.adapting import adapted
from small_networks import DENSE, TINY, changed, shuffled, tiny

if TYPE_CHECKING:
    from pathlib import Path

NUCLEI = ("background", "nucleus")


def silent(name: str, *, outputs: int = 2, **changes: Any) -> Model:
    """A model that reads evidence, but finds none."""
    classes = NUCLEI if outputs == 3 else ("background", *"abcdef"[: outputs - 1])
    belongs = (0, 1, 1) if outputs == 3 else tuple(range(outputs))
    network = tiny(name, classes=outputs, **changes)
    if name != "retina-vgg":
        # Opinions of a fresh network hardly differ from place to place.
        last = network.out if hasattr(network, "out") else None
        if last is not None:
            last.weight.mul_(5)
    model = Model(
        name,
        network,
        classes,
        belongs,
        depths=(0.0, 0.25, 0.75) if outputs == 3 else None,
    )
    return adapted(model, classes)


# -- what is decided -----------------------------------------------------------------


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("outputs", [2, 3, 4])
def test_without_evidence_classes_are_decided_as_before(
    name: str, outputs: int
) -> None:
    model = silent(name, outputs=outputs)
    network, image = model.network, torch.rand(2, 3, 37, 50)
    before = class_sums(probabilities(network.base(image)), model.outputs)
    after = class_sums(probabilities(network(image)), model.outputs)
    assert after.shape == before.shape
    sure = before.topk(2, dim=1).values.diff(dim=1).abs()[:, 0] > 1e-5
    assert sure.float().mean() > 0.9
    assert torch.equal(before.argmax(1)[sure], after.argmax(1)[sure])


def test_without_evidence_a_retina_decides_as_before() -> None:
    model = tiny_model(outputs=3)
    network = adapted(model, model.classes).network
    crops = torch.rand(3, 3, 32, 32)
    before = model.network(crops).softmax(-1).transpose(1, 2)
    after = network(crops).softmax(-1).transpose(1, 2)
    before, after = (class_sums(x, (0, 1, 1)) for x in (before, after))
    sure = before.diff(dim=1).abs()[:, 0] > 1e-5
    assert torch.equal(before.argmax(1)[sure], after.argmax(1)[sure])


def test_outputs_of_a_class_keep_their_shares() -> None:
    network = silent("unet", outputs=3).network
    weights = network.weights
    network.weights = 0.3 * torch.randn_like(weights)
    image = torch.rand(1, 3, 32, 40)
    before = probabilities(network.base(image))
    after = probabilities(network(image))
    torch.testing.assert_close(
        after[:, 1] / (after[:, 1] + after[:, 2]),
        before[:, 1] / (before[:, 1] + before[:, 2]),
        atol=1e-5,
        rtol=1e-4,
    )
    assert (after - before).abs().max() > 0.05


def test_outputs_of_a_class_sum_to_its_probability() -> None:
    network = silent("unet", outputs=3).network
    weights = network.weights
    network.weights = 0.3 * torch.randn_like(weights)
    looked = network.look(torch.rand(1, 3, 32, 40))
    evidence = network.evidence(looked)
    expected = network.class_logits(looked, evidence).softmax(1)
    logs = network.output_logs(looked, evidence)
    found = class_sums(logs.exp(), (0, 1, 1))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_network_that_is_sure_leaves_no_share_over(sign: int) -> None:
    network = silent("unet", outputs=3).network
    network.base.out.weight.zero_()
    network.base.out.bias.copy_(torch.tensor([40.0 * sign, 0.0, 0.0]))
    weights = network.weights
    weights[-1] = 2.0 * sign  # what was said is just overruled
    network.weights = weights
    looked = network.look(torch.rand(1, 3, 16, 16))
    evidence = network.evidence(looked)
    expected = network.class_logits(looked, evidence).softmax(1)
    found = class_sums(network.output_logs(looked, evidence).softmax(1), (0, 1, 1))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("outputs", [2, 3, 4])
def test_evidence_for_a_class_raises_it_everywhere(outputs: int) -> None:
    model = silent("unet", outputs=outputs)
    network, image = model.network, torch.rand(1, 3, 33, 40)

    def seen() -> torch.Tensor:
        return class_sums(probabilities(network(image)), model.outputs)

    before, weights = seen(), network.weights
    for c in range(len(model.classes)):
        more = weights.clone()
        if more.shape[1] == 1:
            more[-1] += 1 if c else -1
        else:
            more[-1, c] += 1
        network.weights = more
        rises = seen()[:, c] - before[:, c]
        assert (rises > 0).all(), c
    network.weights = weights
    torch.testing.assert_close(seen(), before)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_opinion_is_bounded_and_evidence_can_overrule_it(classes: int) -> None:
    p = (30 * torch.randn(4, classes, 9, 7)).softmax(1)
    said = opinion(p, range(classes))
    assert said.abs().max() <= 1
    assert said.std() > 0
    # Nothing it can say outweighs evidence of more than 2.
    for c in range(classes):
        evidence = torch.zeros_like(said)
        evidence[:, c] = 2.001
        assert ((said + evidence).argmax(1) == c).all()


def test_impossible_outputs_have_an_opinion_too() -> None:
    p = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None]
    said = opinion(p, (0, 1, 1))
    assert said.isfinite().all()
    assert said[0, 0] > 0.99
    network = silent("unet", outputs=3).network
    network.base.out.weight.zero_()
    network.base.out.bias.copy_(torch.tensor([1e4, 0.0, -1e4]))
    assert network(torch.rand(1, 3, 8, 8)).isfinite().all()


def test_other_classes_than_those_of_the_base_begin_without_opinion() -> None:
    model = Model("unet", tiny("unet"), NUCLEI, (0, 1))
    more = adapted(model, ("ground", "a", "b", "c", "d"))
    assert more.outputs == (0, 1, 2, 3, 4)
    assert more.depths is None
    image = torch.rand(1, 3, 21, 17)
    found = probabilities(more.network(image))
    torch.testing.assert_close(found, torch.full((1, 5, 21, 17), 0.2))
    fewer = adapted(more, NUCLEI)
    assert not fewer.network.config.kept
    torch.testing.assert_close(
        probabilities(fewer.network(image)), torch.full((1, 2, 21, 17), 0.5)
    )
    three = silent("unet", outputs=3)
    assert adapted(three, ("g", "a", "b")).network.config.kept is False


def test_what_is_adapted_again_goes_on_and_leaves_the_first_alone() -> None:
    model = silent("unet")
    again = adapted(model, ("ground", "thing"))
    assert again.classes == ("ground", "thing")
    again.network.weights = again.network.weights + 1
    assert not model.network.weights.any()
    assert type(again.network.base) is type(model.network.base)


# -- weights and files ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("adapted", {}),
        ("adapted", {"classes": 3}),
        ("adapted", {"base": "focusnet", "settings": DENSE["focusnet"]}),
        ("adapted", {"kept": False, "classes": 5, "belongs": (0, 1)}),
        ("adapted-retina", {"classes": 3}),
    ],
)
def test_weights_are_taken_as_they_are_given(
    name: str, changes: dict[str, Any]
) -> None:
    network = build(name, changed(name, **changes)) if "kept" not in changes else None
    if network is None:
        network = build(name, TINY[name] | changes)
    weights = network.weights
    told = network.config.told
    features = sum(read.in_channels for read in network.reads)
    assert weights.shape == (features + 1, 1 if told == 2 else told)
    assert not weights.any()
    assert weights.dtype == torch.float64
    new = torch.randn_like(weights).float().double()
    network.weights = new
    assert torch.equal(network.weights, new)
    assert torch.equal(network.reads[0].bias, new[-1].float())


def test_weights_are_of_the_features_in_their_order() -> None:
    network = tiny("adapted", classes=3)
    looked = network.look(torch.rand(1, 3, 16, 24))
    features = [
        torch.nn.functional.interpolate(
            m, (16, 24), mode="bilinear", align_corners=False
        )
        for m in looked.maps
    ]
    weights = network.weights.float()
    expected = torch.einsum("bfhw,fe->behw", torch.cat(features, 1), weights[:-1])
    expected = expected + weights[-1][:, None, None]
    torch.testing.assert_close(network.evidence(looked), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("base", [*DENSE, "ensemble", "retina"])
def test_a_saved_model_reads_the_same_evidence(
    base: str, half: bool, tmp_path: Path
) -> None:
    if base == "retina":
        own = tiny_model(outputs=3)
        model = adapted(own, own.classes)
    else:
        model = silent(base, outputs=2 if base == "ensemble" else 3)
    weights = model.network.weights
    model.network.weights = (0.2 * torch.randn_like(weights)).half().float()
    model.save(tmp_path / "a.safetensors", half=half)
    loaded = Model.load(tmp_path / "a.safetensors")
    told = [m.config.model_dump_json() for m in (loaded, model)]
    assert told[0] == told[1]
    assert (loaded.classes, loaded.outputs) == (model.classes, model.outputs)
    assert loaded.system == model.system
    image = torch.rand(1, 3, 32, 32)
    found, expected = loaded.network(image), model.network(image)
    if half:
        found, expected = found.softmax(1), expected.softmax(1)
        assert (found - expected).abs().max() < 0.2
        assert (found - expected).abs().mean() < 0.01
    else:
        torch.testing.assert_close(found, expected)
    assert {p.dtype for p in loaded.network.parameters()} == {torch.float32}


@pytest.mark.parametrize("norm", [False, True])
def test_a_folded_retina_reads_the_same(norm: bool) -> None:
    own = tiny_model(outputs=3, norm=norm)
    network = adapted(own, own.classes).network
    network.weights = 0.2 * torch.randn_like(network.weights)
    crops = torch.rand(2, 3, 32, 32)
    folded = network.folded()
    torch.testing.assert_close(folded(crops), network(crops), atol=1e-4, rtol=1e-4)
    if norm:
        names = {type(m).__name__ for m in folded.modules()}
        assert "BatchNorm2d" not in names


@pytest.mark.parametrize("name", ["adapted", "adapted-retina"])
def test_building_on_the_meta_device_takes_no_memory(name: str) -> None:
    with torch.device("meta"):
        network = build(name, TINY[name])
    assert all(v.is_meta for v in network.state_dict().values())


# -- features ------------------------------------------------------------------------


def slow_features(image: np.ndarray) -> np.ndarray:
    """As the paper-and-pencil definition, with scipy and numpy."""

    def slopes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = np.pad(x, 1, mode="edge")
        return (x[2:, 1:-1] - x[:-2, 1:-1]) / 2, (x[1:-1, 2:] - x[1:-1, :-2]) / 2

    light, shape = list(image), []
    gray = image.mean(0)
    for sigma in SIGMAS:
        smooth = [
            ndimage.gaussian_filter(c, sigma, mode="nearest", truncate=3) for c in image
        ]
        light += smooth
        soft = np.mean(smooth, axis=0)
        down, right = slopes(soft)
        (dd, dr), (_, rr) = slopes(down), slopes(right)
        both = np.linalg.eigvalsh(
            np.stack([dd, dr, dr, rr], -1).reshape(*dd.shape, 2, 2)
        )
        square = ndimage.gaussian_filter(gray**2, sigma, mode="nearest", truncate=3)
        shape += [
            sigma * np.hypot(down, right),
            sigma**2 * both[..., 1],
            sigma**2 * both[..., 0],
            np.sqrt(np.clip(square - soft**2, 0, None)),
        ]
    return np.stack(light + shape)


@pytest.mark.parametrize(
    ("channels", "shape"), [(1, (40, 33)), (3, (9, 50)), (4, (1, 2))]
)
def test_image_features_are_smoothings_slopes_curvatures_and_spread(
    channels: int, shape: tuple[int, int]
) -> None:
    part = ImageFeatures(channels)
    image = torch.rand(2, channels, *shape)
    found = part(image)
    assert found.shape == (2, part.count, *shape)
    assert part.light == 4 * channels
    for b in range(2):
        expected = slow_features(image[b].double().numpy())
        # The root of a difference that nearly vanishes is mostly rounding.
        np.testing.assert_allclose(found[b].numpy(), expected, atol=2e-3)
        np.testing.assert_allclose(found[b, :-1:4].numpy(), expected[:-1:4], atol=2e-3)
        light = slice(0, part.light)
        np.testing.assert_allclose(found[b, light].numpy(), expected[light], atol=1e-5)


def test_a_flat_image_has_no_shape() -> None:
    part = ImageFeatures(3)
    found = part(torch.full((1, 3, 20, 20), 0.7))
    torch.testing.assert_close(found[:, : part.light], torch.full((1, 12, 20, 20), 0.7))
    assert found[:, part.light :].abs().max() < 2e-3


def test_a_retinas_features_are_means_over_cells() -> None:
    network = tiny("adapted-retina", classes=3)
    crops = torch.rand(2, 3, 32, 32)
    looked = network.look(crops)
    pixels = network.image(crops)
    grid = network.grid
    assert looked.outputs.shape == (2, 3, grid.n_cells)
    index = torch.from_numpy(grid.cell_index)
    for cell in range(grid.n_cells):
        own = index == cell
        assert own.sum() == network.areas[cell]
        torch.testing.assert_close(
            looked.maps[0][:, : network.image.count, cell],
            pixels[:, :, own].mean(2),
            atol=1e-5,
            rtol=1e-4,
        )
    said = opinion(network.base(crops).softmax(-1).transpose(1, 2), (0, 1, 2))
    torch.testing.assert_close(looked.maps[0][:, network.image.count :], said)


@pytest.mark.parametrize("name", DENSE)
def test_feature_maps_are_not_changed_by_what_follows_them(name: str) -> None:
    network = silent(name).network
    assert network._taps
    image, kept = torch.rand(1, 3, 32, 32), {}
    for key in network._taps:
        network.base.get_submodule(key).register_forward_hook(
            lambda _, __, out, key=key: kept.__setitem__(key, out.clone())
        )
    looked = network.look(image)
    for found, key in zip(looked.maps[1:], network._taps, strict=True):
        assert torch.equal(found, kept[key]), key
        assert found.shape[1] == network._taps[key], key
    hooks = sum(len(m._forward_hooks) for m in network.modules())
    assert hooks == len(network._taps), "only the test's own are left"


# -- what else a network does --------------------------------------------------------


def test_attention_can_still_be_seen() -> None:
    model = silent("focusnet")
    own = attention_names(model.network.base)
    assert attention_names(model.network) == own
    image = torch.rand(1, 3, 32, 48)
    with capture_attention(model.network) as maps:
        model.network(image)
    assert set(maps) == set(own)
    with capture_attention(model.network.base) as expected:
        model.network.base(image)
    for key in own:
        torch.testing.assert_close(maps[key], expected[key])


@pytest.mark.parametrize("base", [*DENSE, "ensemble"])
def test_the_system_is_that_of_the_base(base: str) -> None:
    model = silent(base)
    settings = TINY[base] | {"belongs": (0, 1)}
    assert model.system == system_of(base, settings)
    own = tiny_model()
    assert adapted(own, own.classes).system == "S0"


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("adapted", {"base": "nothing"}, "no network 'nothing'"),
        ("adapted", {"settings": {"depth": 99}}, "depth"),
        ("adapted", {"settings": {"channels": 1}}, "other channels"),
        ("adapted", {"channels": 5}, "channels"),
        ("adapted", {"belongs": (0,)}, "2 outputs"),
        ("adapted", {"belongs": (0, 2)}, "2 outputs"),
        ("adapted", {"belongs": (0, -1)}, "2 outputs"),
        ("adapted", {"belongs": (0, 1, 1)}, "2 outputs"),
        ("adapted", {"belongs": ()}, "2 outputs"),
        ("adapted", {"classes": 3}, "other classes"),
        ("adapted", {"base": "adapted", "settings": TINY["adapted"]}, "hold another"),
        ("adapted", {"base": "retina-vgg", "settings": {}}, "every pixel"),
        ("adapted", {"base": "mask-rcnn", "settings": {}}, "every pixel"),
        ("adapted", {"more": 1}, "more"),
        ("adapted-retina", {"base": "unet", "settings": {}}, "no retina"),
        ("adapted-retina", {"base": "patch-center", "settings": {}}, "no retina"),
        ("adapted-retina", {"d": 64}, "another grid"),
        ("adapted-retina", {"r": 1}, "another grid"),
        (
            "adapted-retina",
            {"base": "adapted-retina", "settings": TINY["adapted-retina"]},
            "hold another",
        ),
    ],
)
def test_hostile_settings_get_one_sentence(
    name: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        validate(name, TINY[name] | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("outer", ["adapted", "ensemble"])
def test_networks_nested_without_end_are_refused(outer: str) -> None:
    name, settings = "unet", dict(TINY["unet"])
    for i in range(400):
        if outer == "adapted" or i % 2:
            settings = {"base": name, "settings": settings, "belongs": (0, 1)}
            name = "adapted"
        else:
            settings = {"member": name, "settings": settings, "members": 1}
            name = "ensemble"
    with pytest.raises(ModelError):
        validate(name, settings)


def test_all_outputs_cannot_belong_to_one_class() -> None:
    with pytest.raises(ModelError):
        validate("adapted", TINY["adapted"] | {"belongs": (0, 0)})


def test_gradients_reach_the_base_and_what_is_read() -> None:
    network = shuffled(build("adapted", changed("adapted", classes=3)))
    network.requires_grad_(True)
    logits = network(torch.rand(2, 3, 32, 32))
    (logits * torch.randn_like(logits)).sum().backward()
    for key, value in network.named_parameters():
        assert value.grad is not None, key
        assert value.grad.isfinite().all(), key
        if key.startswith("reads."):
            assert value.grad.any(), key
