"""The residual-attention pyramid in Mask R-CNN."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from napari_fovea.errors import CheckpointError, ModelError
from napari_fovea.networks.gates import attention_names, capture_attention
from napari_fovea.networks.mask_rcnn import (
    CONFIGS,
    MaskRCNN,
    MaskRCNNConfig,
    Target,
    load_backbone,
    paste,
)
from napari_fovea.networks.mask_rcnn.fpn import AttentionFPN, TopDownBlock
from napari_fovea.networks.mask_rcnn.resnet import FrozenBatchNorm2d, ResNet
from napari_fovea.networks.registry import build, named_configs, system_of, validate

if TYPE_CHECKING:
    from pathlib import Path

    from napari_fovea.networks.mask_rcnn.config import Attention

TINY = {
    "backbone": "resnet18",
    "width": 8,
    "norm": "group",
    "pyramid": 16,
    "head_width": 16,
    "mask_width": 8,
    "mask_layers": 1,
    "mask_side": 14,
    "rois_per_image": 24,
    "before_training": 50,
    "after_training": 50,
    "before_inference": 30,
    "after_inference": 30,
    "score": 0.0,
}
VARIANTS: tuple[Attention, ...] = ("none", "no-gamma", "pixel", "concat", "proposed")
LOSSES = {"objectness", "rpn_box", "class", "box", "mask"}


def tiny(**changes: object) -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN(MaskRCNNConfig.model_validate({**TINY, **changes}))


def squares(*corners: tuple[int, int], side: int = 12, size: int = 64) -> torch.Tensor:
    instances = torch.zeros(size, size, dtype=torch.int32)
    for i, (y, x) in enumerate(corners):
        instances[y : y + side, x : x + side] = i + 1
    return instances


def losses_of(
    network: MaskRCNN, images: torch.Tensor, targets: list[Target]
) -> dict[str, torch.Tensor]:
    losses = network.train()(images, targets)
    assert isinstance(losses, dict)
    assert set(losses) == LOSSES
    for loss in losses.values():
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
    return losses


class TestBlock:
    @pytest.mark.parametrize("attention", ["pixel", "concat", "proposed"])
    def test_starts_as_its_plain_twin(self, attention: Attention) -> None:
        block = TopDownBlock(12, 20, out=16, attention=attention, label="a")
        plain = TopDownBlock(12, 20, out=16, attention="none", label="a")
        shared = block.state_dict()
        plain.load_state_dict({k: shared[k] for k in plain.state_dict()})
        x, y = torch.randn(2, 12, 8, 10), torch.randn(2, 20, 4, 5)
        assert torch.equal(block(x, y), plain(x, y))
        assert block.gamma is not None
        with torch.no_grad():
            block.gamma.fill_(0.5)
        assert not torch.allclose(block(x, y), plain(x, y), atol=1e-3)

    def test_is_equation_four(self) -> None:
        block = TopDownBlock(3, 5, out=4, attention="proposed", label="a")
        assert block.gamma is not None
        assert block.attention is not None
        with torch.no_grad():
            block.gamma.fill_(0.7)
        x, y = torch.randn(1, 3, 6, 6), torch.randn(1, 5, 3, 3)
        fine = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
        theta, phi, psi = (
            block.attention.theta,
            block.attention.phi,
            block.attention.psi,
        )
        alpha = torch.sigmoid(psi(torch.relu(theta(x) + phi(fine))))
        z = block.h(0.7 * alpha * block.g(x) + block.g(x) + block.q(fine))
        assert torch.allclose(block(x, y), z, atol=1e-5)

    def test_concat_is_equation_six(self) -> None:
        block = TopDownBlock(3, 5, out=4, attention="concat", label="a")
        gate = block.attention
        assert gate is not None
        x, y = torch.randn(1, 3, 6, 6), torch.randn(1, 5, 3, 3)
        fine = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
        both = torch.cat((gate.theta(x), gate.phi(fine)), dim=1)
        alpha = torch.sigmoid(gate.psi(torch.relu(both)))
        assert torch.allclose(gate(x, y), alpha, atol=1e-5)

    def test_without_gamma_attention_counts_fully(self) -> None:
        block = TopDownBlock(3, 5, out=4, attention="no-gamma", label="a")
        other = TopDownBlock(3, 5, out=4, attention="proposed", label="a")
        assert other.gamma is not None
        other.load_state_dict({**block.state_dict(), "gamma": torch.ones(())})
        x, y = torch.randn(1, 3, 6, 6), torch.randn(1, 5, 3, 3)
        assert torch.allclose(block(x, y), other(x, y), atol=1e-6)

    def test_variants_differ_where_they_should(self) -> None:
        shapes = {}
        for variant in VARIANTS:
            block = TopDownBlock(12, 20, out=16, attention=variant, label="a")
            shapes[variant] = {
                name: tuple(p.shape) for name, p in block.named_parameters()
            }
        proposed = shapes["proposed"]
        gate = {name for name in proposed if name.startswith("attention.")}
        assert len(gate) == 6
        assert shapes["none"] == {
            k: v for k, v in proposed.items() if k not in gate and k != "gamma"
        }
        assert shapes["no-gamma"] == {k: v for k, v in proposed.items() if k != "gamma"}
        assert shapes["concat"] == {
            **proposed,
            "attention.psi.weight": (16, 32, 1, 1),
        }
        assert shapes["pixel"] == {
            k: (1, 1 if "psi" in k else v[1], 1, 1) if "weight" in k else (1,)
            for k, v in proposed.items()
            if k in gate
        } | {k: v for k, v in proposed.items() if k not in gate}

    @pytest.mark.parametrize("attention", ["pixel", "concat", "proposed"])
    def test_gamma_moves(self, attention: Attention) -> None:
        block = TopDownBlock(4, 6, out=8, attention=attention, label="a")
        optimiser = torch.optim.SGD(block.parameters(), lr=0.05)
        x, y = torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)
        wanted = torch.randn(2, 8, 8, 8)
        for step in range(3):
            optimiser.zero_grad()
            (block(x, y) - wanted).square().mean().backward()
            assert block.gamma is not None
            assert block.gamma.grad is not None
            assert block.gamma.grad != 0
            assert block.attention is not None
            gradient = block.attention.theta.weight.grad
            assert gradient is not None
            # The gate learns as soon as γ has left 0.
            assert bool(gradient.any()) == (step > 0)
            optimiser.step()
        assert block.gamma.item() != 0

    @pytest.mark.parametrize("attention", VARIANTS[1:])
    def test_coefficients_can_be_looked_at(self, attention: Attention) -> None:
        network = tiny(attention=attention).eval()
        names = tuple(f"pyramid attention P{i}" for i in (2, 3, 4))
        assert attention_names(network) == names
        with capture_attention(network) as maps:
            network(torch.rand(1, 3, 64, 96))
        depth = 1 if attention == "pixel" else 16
        assert [tuple(maps[n].shape) for n in names] == [
            (1, depth, 64 >> i, 96 >> i) for i in (2, 3, 4)
        ]
        for values in maps.values():
            assert values.min() >= 0
            assert values.max() <= 1
            assert values.std() > 0

    def test_pyramid_has_strides_4_8_16(self) -> None:
        fpn = AttentionFPN((8, 16, 32, 64), out=12, attention="proposed")
        features = [torch.randn(1, 8 << i, 32 >> i, 64 >> i) for i in range(4)]
        shapes = [tuple(level.shape) for level in fpn(features)]
        assert shapes == [(1, 12, 32, 64), (1, 12, 16, 32), (1, 12, 8, 16)]


# Names and shapes as torchvision has them, width 64.
COMMON = {
    "conv1.weight": (64, 3, 7, 7),
    "bn1.weight": (64,),
    "bn1.bias": (64,),
    "bn1.running_mean": (64,),
    "bn1.running_var": (64,),
    "bn1.num_batches_tracked": (),
}
EXPECTED = {
    "resnet18": {
        "layer1.0.conv1.weight": (64, 64, 3, 3),
        "layer1.1.bn2.bias": (64,),
        "layer2.0.conv1.weight": (128, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.running_var": (128,),
        "layer4.1.conv2.weight": (512, 512, 3, 3),
    },
    "resnet50": {
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.conv2.weight": (64, 64, 3, 3),
        "layer1.0.conv3.weight": (256, 64, 1, 1),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer2.0.conv2.weight": (128, 128, 3, 3),
        "layer2.0.downsample.1.bias": (512,),
        "layer3.5.bn3.weight": (1024,),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
    },
}


class TestResNet:
    @pytest.mark.parametrize(
        ("backbone", "tensors", "parameters"),
        [("resnet18", 120, 11_176_512), ("resnet50", 318, 23_508_032)],
    )
    def test_has_torchvisions_names(
        self, backbone: str, tensors: int, parameters: int
    ) -> None:
        with torch.device("meta"):
            network = ResNet(backbone, channels=3, width=64, norm="batch")  # type: ignore[arg-type]
        state = {k: tuple(v.shape) for k, v in network.state_dict().items()}
        expected = COMMON | EXPECTED[backbone]
        assert {k: state.get(k) for k in expected} == expected
        assert len(state) == tensors
        assert sum(p.numel() for p in network.parameters()) == parameters
        names = set(state)
        assert ("layer1.0.downsample.0.weight" in names) == (backbone == "resnet50")

    @pytest.mark.parametrize("backbone", ["resnet18", "resnet34"])
    @pytest.mark.parametrize("norm", ["batch", "group", "frozen"])
    def test_runs_with_every_norm(self, backbone: str, norm: str) -> None:
        network = ResNet(backbone, channels=1, width=8, norm=norm)  # type: ignore[arg-type]
        shapes = [tuple(f.shape) for f in network(torch.rand(2, 1, 64, 96))]
        assert shapes == [(2, 8 << i, 16 >> i, 24 >> i) for i in range(4)]

    def test_strides_stand_in_the_three_by_three_convolution(self) -> None:
        network = ResNet("resnet50", channels=3, width=8, norm="group")
        block = network.layer2[0]
        assert block.conv1.stride == (1, 1)  # type: ignore[union-attr]
        assert block.conv2.stride == (2, 2)  # type: ignore[union-attr]

    def test_frozen_statistics_stay(self) -> None:
        network = ResNet("resnet18", channels=3, width=8, norm="frozen").train()
        before = network.bn1.running_mean.clone()  # type: ignore[union-attr,operator]
        x = torch.rand(1, 3, 64, 64)
        trained = network(x)[3]
        assert isinstance(network.bn1, FrozenBatchNorm2d)
        assert torch.equal(network.bn1.running_mean, before)  # type: ignore[arg-type]
        assert torch.equal(network.eval()(x)[3], trained)
        assert network.bn1.weight.requires_grad


class TestWeights:
    def state(self, network: MaskRCNN, channels: int = 3) -> dict[str, torch.Tensor]:
        config = network.config
        other = ResNet(
            config.backbone, channels=channels, width=config.width, norm="batch"
        )
        state = {
            k: torch.rand_like(v) if v.is_floating_point() else v
            for k, v in other.state_dict().items()
        }
        return {**state, "fc.weight": torch.rand(10, 64), "fc.bias": torch.rand(10)}

    @pytest.mark.parametrize("ending", ["safetensors", "pth"])
    @pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
    def test_loads(self, tmp_path: Path, ending: str, norm: str) -> None:
        network = tiny(norm=norm)
        state = self.state(network)
        path = tmp_path / f"resnet.{ending}"
        if ending == "pth":
            torch.save(state, path)
        else:
            save_file(state, path)
        load_backbone(network, path)
        for name, tensor in network.backbone.state_dict().items():
            assert torch.equal(tensor, state[name]), name
        assert network.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])

    @pytest.mark.parametrize("channels", [1, 2, 4])
    def test_a_grey_image_looks_the_same_in_any_channels(
        self, tmp_path: Path, channels: int
    ) -> None:
        rgb, other = tiny(), tiny(channels=channels)
        path = tmp_path / "resnet.safetensors"
        save_file(self.state(rgb), path)
        load_backbone(rgb, path)
        load_backbone(other, path)
        grey = torch.randn(1, 1, 32, 32)
        expected = rgb.backbone.conv1(grey.expand(1, 3, 32, 32))
        out = other.backbone.conv1(grey.expand(1, channels, 32, 32))
        assert torch.allclose(out, expected, atol=1e-4)
        assert other.std.shape == (channels, 1, 1)

    def test_wrong_files_are_told_apart(self, tmp_path: Path) -> None:
        network = tiny()
        before = {k: v.clone() for k, v in network.state_dict().items()}
        good = self.state(network)
        path = tmp_path / "weights.safetensors"

        def fails(state: dict[str, torch.Tensor], *words: str) -> None:
            save_file(state, path)
            with pytest.raises(CheckpointError) as error:
                load_backbone(network, path)
            for word in ("weights.safetensors", *words):
                assert word in str(error.value)

        wide = {**good, "layer1.0.conv1.weight": torch.rand(64, 64, 3, 3)}
        fails(wide, "layer1.0.conv1.weight", "(64, 64, 3, 3)", "(8, 8, 3, 3)")
        short = {k: v for k, v in good.items() if k != "layer2.0.conv2.weight"}
        fails(short, "layer2.0.conv2.weight", "(16, 16, 3, 3)")
        deep = {**good, "layer1.2.conv1.weight": torch.rand(8, 8, 3, 3)}
        fails(deep, "layer1.2.conv1.weight", "resnet18")
        path.write_bytes(b"nonsense")
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_backbone(network, path)
        with pytest.raises(CheckpointError, match="no file"):
            load_backbone(network, tmp_path / "none.pth")
        pickled = tmp_path / "weights.pth"
        torch.save(["no state"], pickled)
        with pytest.raises(CheckpointError, match="no state dict"):
            load_backbone(network, pickled)
        torch.save(network, pickled)  # code, which is not run
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_backbone(network, pickled)
        after = network.state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)


class TestTraining:
    def test_every_parameter_gets_a_gradient(self) -> None:
        network = tiny()
        targets = [
            Target.from_instances(squares((4, 4), (30, 40))),
            Target.from_instances(squares((20, 20), side=30)),
        ]
        losses = losses_of(network, torch.rand(2, 3, 64, 64), targets)
        assert all(loss > 0 for loss in losses.values())
        sum(losses.values()).backward()  # type: ignore[union-attr]
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name

    @pytest.mark.parametrize("corners", [(), ((8, 8),)])
    @pytest.mark.parametrize("half", [False, True])
    def test_no_objects_or_one(
        self, corners: tuple[tuple[int, int], ...], half: bool
    ) -> None:
        network = tiny().to(memory_format=torch.channels_last)
        images = torch.rand(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
        target = Target.from_instances(squares(*corners))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses = losses_of(network, images, [target])
        sum(losses.values()).backward()  # type: ignore[union-attr]
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        assert bool(losses["mask"] > 0) == bool(corners)
        assert bool(losses["rpn_box"] > 0) == bool(corners)
        assert losses["class"] > 0

    def test_all_void_counts_for_nothing(self) -> None:
        instances = squares()
        target = Target.from_instances(instances, void=instances == 0)
        losses = losses_of(tiny(), torch.rand(1, 3, 64, 64), [target])
        inner = {k: v.item() for k, v in losses.items() if k != "objectness"}
        assert inner == dict.fromkeys(inner, 0.0)
        # Only anchors that lie mostly outside of the image may be left.
        losses["objectness"].backward()

    def test_odd_sizes_and_a_single_pixel(self) -> None:
        network = tiny(norm="batch")
        for shape in ((1, 1), (1, 77), (70, 33)):
            instances = torch.ones(shape, dtype=torch.int32)
            target = Target.from_instances(instances)
            losses = losses_of(network, torch.rand(1, 3, *shape), [target])
            sum(losses.values()).backward()  # type: ignore[union-attr]

    def test_the_same_seed_gives_the_same_losses(self) -> None:
        network = tiny()
        images = torch.rand(1, 3, 64, 64)
        target = Target.from_instances(squares((4, 4), (30, 40)))
        runs = []
        for _ in range(2):
            torch.manual_seed(3)
            losses = losses_of(network, images, [target])
            runs.append({k: v.item() for k, v in losses.items()})
        assert runs[0] == runs[1]

    @pytest.mark.parametrize("channels", [1, 2, 4])
    def test_three_classes_and_other_channels(self, channels: int) -> None:
        network = tiny(channels=channels, classes=3)
        instances = squares((4, 4), (30, 40))
        target = Target.from_instances(instances, instances)
        assert target.labels.tolist() == [1, 2]
        losses = losses_of(network, torch.rand(1, channels, 64, 64), [target])
        sum(losses.values()).backward()  # type: ignore[union-attr]
        found = network.eval()(torch.rand(1, channels, 64, 64))[0]
        assert set(found.labels.tolist()) <= {1, 2}
        assert paste(found, (64, 64))[1].shape == (3, 64, 64)

    def test_learns_to_find_squares(self) -> None:
        network = tiny(width=16, pyramid=32, head_width=64, mask_width=16)
        optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
        instances = squares((6, 6), (38, 10), (20, 40), side=16)
        images = (instances > 0).float().expand(1, 3, 64, 64) * 0.8 + 0.1
        target = Target.from_instances(instances)
        for _ in range(100):
            optimiser.zero_grad()
            losses = losses_of(network, images, [target])
            torch.stack(list(losses.values())).sum().backward()
            optimiser.step()
        found = network.eval()(images)[0]
        assert found.scores[2] > 0.8
        assert found.scores[3] < 0.2
        order = found.boxes[:3, 1].argsort()  # from top to bottom, as the target
        distance = (found.boxes[:3][order] - target.boxes[[0, 2, 1]]).abs()
        assert distance.max() < 3
        assert all(network.gammas().values())


class TestDetecting:
    @pytest.mark.parametrize(
        ("backbone", "width"),
        [("resnet18", 16), ("resnet34", 8), ("resnet50", 8), ("resnet101", 8)],
    )
    def test_all_backbones(self, backbone: str, width: int) -> None:
        network = tiny(backbone=backbone, width=width).eval()
        (found,) = network(torch.rand(1, 3, 64, 64))
        n = len(found)
        assert 0 < n <= 30
        assert found.boxes.shape == (n, 4)
        assert found.masks.shape == (n, 14, 14)
        assert found.classes == 2

    @pytest.mark.parametrize("shape", [(1, 1), (1, 50), (33, 97), (65, 64)])
    def test_any_size(self, shape: tuple[int, int]) -> None:
        network = tiny().eval()
        images = torch.rand(2, 3, *shape)
        for found in network(images):
            limit = torch.tensor([shape[1], shape[0], shape[1], shape[0]])
            assert (found.boxes >= 0).all()
            assert (found.boxes <= limit).all()
            assert (found.scores.diff() <= 0).all()
            assert not found.masks.requires_grad
            instances, probabilities = paste(found, shape)
            assert instances.shape == shape
            assert torch.from_numpy(probabilities).isfinite().all()

    def test_limits(self) -> None:
        network = tiny(detections=3).eval()
        assert len(network(torch.rand(1, 3, 64, 64))[0]) == 3
        none = tiny(score=0.999).eval()(torch.rand(1, 3, 64, 64))[0]
        assert none.masks.shape == (0, 14, 14)

    def test_half_precision_and_channels_last(self) -> None:
        network = tiny().eval().to(memory_format=torch.channels_last)
        images = torch.rand(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            (found,) = network(images)
        for values in (found.boxes, found.scores, found.masks):
            assert values.dtype == torch.float32
            assert values.isfinite().all()

    def test_images_of_a_batch_do_not_mix(self) -> None:
        network = tiny().eval()
        images = torch.rand(3, 3, 64, 64)
        together = network(images)
        for i in range(3):
            (alone,) = network(images[i : i + 1])
            assert torch.allclose(alone.scores, together[i].scores, atol=1e-4)
            assert alone.to("cpu").masks.shape == together[i].masks.shape


class TestConfig:
    def test_is_registered(self) -> None:
        assert system_of("mask-rcnn") == "S4"
        assert named_configs("mask-rcnn") == CONFIGS
        assert isinstance(build("mask-rcnn", dict(TINY)), MaskRCNN)

    def test_small_is_small(self) -> None:
        with torch.device("meta"):
            network = build("mask-rcnn", CONFIGS["small"])
        assert sum(p.numel() for p in network.parameters()) < 5e6

    def test_paper_is_the_default(self) -> None:
        assert validate("mask-rcnn", CONFIGS["paper"]) == MaskRCNNConfig()

    def test_bad_settings(self) -> None:
        with pytest.raises(ModelError, match="anchors must grow"):
            validate("mask-rcnn", {"anchors": (32, 16, 64)})
        with pytest.raises(ModelError, match="width"):
            validate("mask-rcnn", {"width": 12})

    def test_gammas(self) -> None:
        names = [f"pyramid attention P{i}" for i in (2, 3, 4)]
        for variant in VARIANTS:
            learned = variant not in ("none", "no-gamma")
            expected = dict.fromkeys(names, 0.0) if learned else {}
            assert tiny(attention=variant).gammas() == expected

    def test_nothing_is_frozen(self) -> None:
        assert all(p.requires_grad for p in tiny(norm="frozen").parameters())

    def test_a_new_network_starts_from_the_plain_one(self) -> None:
        plain, proposed = tiny(attention="none"), tiny(attention="proposed")
        shared = proposed.state_dict()
        plain.load_state_dict({k: shared[k] for k in plain.state_dict()})
        images = torch.rand(1, 3, 64, 64)
        first, second = plain.eval()(images)[0], proposed.eval()(images)[0]
        assert torch.equal(first.boxes, second.boxes)
        assert torch.equal(first.masks, second.masks)
        assert isinstance(plain, nn.Module)
