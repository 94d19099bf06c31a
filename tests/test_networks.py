"""The papers' networks from outside: sizes, shapes, gradients, files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional

from napari_fovea.errors import ModelError
from napari_fovea.models import Model
from napari_fovea.networks import (
    DenseConfig,
    MaskRCNN,
    build,
    name_of,
    named_configs,
    network_names,
    probabilities,
    system_of,
    validate,
)
from small_networks import DENSE, TINY, changed, shuffled, tiny

if TYPE_CHECKING:
    from pathlib import Path

# -- sizes -------------------------------------------------------------------------

# An ensemble of systems is not run by itself, but by its members' readers.
RUN = [name for name in network_names() if name != "mixed-ensemble"]


@pytest.mark.parametrize(
    ("name", "config", "channels", "trainable", "in_all"),
    [
        ("focusnet", "paper", 3, 19_063_933, 19_073_573),
        ("focusnet", "paper", 1, 19_057_085, 19_066_725),
        ("focusnet-plus", "released", 3, 7_771_723, 7_803_739),
        ("focusnet-plus", "released", 1, 7_770_123, 7_802_139),
    ],
)
def test_the_published_networks_have_their_authors_parameters(
    name: str, config: str, channels: int, trainable: int, in_all: int
) -> None:
    settings = named_configs(name)[config] | {"channels": channels, "classes": 2}
    with torch.device("meta"):
        network = build(name, settings)
    parameters = sum(p.numel() for p in network.parameters())
    statistics = sum(b.numel() for k, b in network.named_buffers() if "running" in k)
    assert (parameters, parameters + statistics) == (trainable, in_all)


@pytest.mark.parametrize("name", RUN)
def test_every_named_setting_can_be_built(name: str) -> None:
    for settings in named_configs(name).values():
        with torch.device("meta"):
            network = build(name, settings)
        assert name_of(network) == name


def test_systems_are_those_of_the_papers() -> None:
    told = {name: system_of(name, TINY.get(name)) for name in network_names()}
    assert told == {
        "adapted": "S0",
        "adapted-retina": "S0",
        "ensemble": "S0",
        "focusnet": "S1",
        "focusnet-plus": "S3",
        "mask-rcnn": "S4",
        "mixed-ensemble": "ensemble",
        "patch-center": "S0",
        "r2-attention-unet": "S2",
        "retina-shared": "S0",
        "retina-vgg": "S0",
        "unet": "S0",
    }


# -- what goes in and out ------------------------------------------------------------


@pytest.mark.parametrize("name", [*DENSE, "adapted"])
@pytest.mark.parametrize("classes", [2, 3])
def test_any_image_gets_logits_of_its_size(name: str, classes: int) -> None:
    network = tiny(name, classes=classes)
    assert isinstance(network.config, DenseConfig)
    assert network.config.logits == (1 if classes == 2 else 3)
    for shape in ((1, 1), (1, 9), (7, 5), (33, 18), (32, 32)):
        logits = network(torch.rand(2, 3, *shape))
        assert logits.shape == (2, network.config.logits, *shape)
        assert logits.isfinite().all()
    assert logits.std() > 0


@pytest.mark.parametrize("name", [*DENSE, "adapted"])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_have_one_to_four_channels(name: str, channels: int) -> None:
    network = tiny(name, channels=channels)
    image = torch.rand(1, channels, 19, 21)
    logits = network(image)
    assert logits.shape == (1, 1, 19, 21)
    for i in range(channels):
        other = image.clone()
        other[:, i] = 1 - other[:, i]
        assert not torch.allclose(network(other), logits, atol=1e-5), "each counts"


@pytest.mark.parametrize("name", [*DENSE, "adapted"])
def test_sides_that_do_not_divide_are_filled_with_the_edge(name: str) -> None:
    network = tiny(name)
    image = torch.rand(1, 3, 13, 30)
    m = network.multiple
    below, right = -13 % m, -30 % m
    assert min(below, right) > 0
    whole = functional.pad(image, (0, right, 0, below), mode="replicate")
    expected = network(whole)[..., :13, :30]
    torch.testing.assert_close(network(image), expected)


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("classes", [2, 3])
def test_the_gradient_reaches_every_parameter(name: str, classes: int) -> None:
    reached: set[str] = set()
    for _ in range(8):  # a lone unit may be born dead, but not always
        network = build(name, DENSE[name] | {"classes": classes}).train()
        logits = network(torch.rand(2, 3, 32, 48))
        (logits * torch.randn_like(logits)).sum().backward()
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            if parameter.grad.any():
                reached.add(key)
    # A bias that a normalisation takes away again learns nothing but rounding.
    assert reached >= {k for k, p in network.named_parameters() if p.ndim > 1}


@pytest.mark.parametrize("name", DENSE)
def test_training_counts_and_inference_does_not(name: str) -> None:
    network = tiny(name).double()
    images = torch.rand(3, 3, 32, 32).double()

    def statistics() -> torch.Tensor:
        buffers = [b for k, b in network.named_buffers() if "running" in k]
        return torch.cat([b.flatten() for b in buffers]).clone()

    before = statistics()
    together = network(images)
    assert torch.equal(statistics(), before)
    for i in range(3):
        torch.testing.assert_close(network(images[i : i + 1])[0], together[i])
    trained = network.train()(images)
    assert (statistics() != before).all()
    assert not torch.allclose(trained, together, atol=1e-3)


@pytest.mark.parametrize("name", [*DENSE, "adapted"])
def test_the_memory_layout_does_not_matter(name: str) -> None:
    image = torch.rand(2, 3, 21, 34)
    network = tiny(name)
    expected = network(image)
    last = network.to(memory_format=torch.channels_last)
    found = last(image.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_probabilities_are_of_all_classes_and_sum_to_one(channels: int) -> None:
    logits = 5 * torch.randn(2, channels, 4, 6)
    p = probabilities(logits)
    torch.testing.assert_close(p.sum(1), torch.ones(2, 4, 6))
    if channels == 1:
        assert p.shape == (2, 2, 4, 6)
        torch.testing.assert_close(p[:, 1], 1 / (1 + (-logits[:, 0]).exp()))
    else:
        literal = logits.exp() / logits.exp().sum(1, keepdim=True)
        torch.testing.assert_close(p, literal)
    assert probabilities(logits.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("name", RUN)
def test_a_saved_model_gives_the_same_outputs(name: str, tmp_path: Path) -> None:
    classes = 3 if name != "mask-rcnn" else 2
    settings = changed(name, classes=classes)
    model = Model(
        name=name,
        network=shuffled(build(name, settings)),
        classes=("background", *"abc"[: classes - 1]),
        outputs=tuple(range(classes)),
    )
    model.save(tmp_path / "model.safetensors")
    loaded = Model.load(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    assert loaded.system == model.system
    side = settings.get("d", 50)
    image = torch.rand(1, 3, side, side)
    expected, found = model.network(image), loaded.network(image)
    other = shuffled(build(name, settings))(image)
    if isinstance(model.network, MaskRCNN):
        expected, found, other = (
            torch.cat([x[0].boxes.flatten(), x[0].masks.flatten()])
            for x in (expected, found, other)
        )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert found.shape != other.shape or not torch.allclose(other, expected)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("u-net", {}, "no network 'u-net'.*unet"),
        ("unet", {"depth": 1}, "depth"),
        ("unet", {"wide": 3}, "wide"),
        ("unet", {"classes": 1}, "classes"),
        ("focusnet", {"width": 6}, "width"),
        ("focusnet", {"dropout": 1.0}, "dropout"),
        ("focusnet-plus", {"widths": (8, 10)}, "width 10 .* four groups"),
        ("focusnet-plus", {"widths": (8, 12), "units": (1, 0)}, "1 to 16 units"),
        ("focusnet-plus", {"widths": (8, 12), "units": (1, 1, 1)}, "units"),
        ("focusnet-plus", {"last": (0,)}, "last"),
        ("r2-attention-unet", {"steps": -1}, "steps"),
        ("ensemble", {"settings": {}}, "member"),
        ("ensemble", {"member": "nothing", "settings": {}}, "no network 'nothing'"),
        ("ensemble", {"member": "unet", "settings": {"depth": 99}}, "depth"),
        ("ensemble", {"member": "unet", "settings": {"classes": 3}}, "other"),
        ("ensemble", {"member": "ensemble", "settings": {}}, "hold ensembles"),
        ("ensemble", {"member": "retina-vgg", "settings": {}}, "every pixel"),
        ("ensemble", {"member": "mask-rcnn", "settings": {}}, "every pixel"),
    ],
)
def test_senseless_settings_get_one_sentence(
    name: str, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        validate(name, settings)
    assert "\n" not in str(caught.value)
