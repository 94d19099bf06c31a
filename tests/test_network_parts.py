"""Inside the papers' networks: attention, parts, ablations, ensembles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from napari_fovea.networks import (
    attention_names,
    build,
    capture_attention,
    named_configs,
    probabilities,
    system_of,
)
from napari_fovea.networks.blocks import SqueezeExcite
from napari_fovea.networks.ensemble import Ensemble, gather
from napari_fovea.networks.focusnet import FocusScale, SideOutput, UpStep
from napari_fovea.networks.gates import AdditiveGate, Coefficients
from napari_fovea.networks.r2_attention_unet import Block, RecurrentConvolution
from small_networks import DENSE, TINY, shuffled, tiny

_LOOK_AT_CROPS = {"adapted-retina", "patch-center", "retina-vgg"}

# -- attention -----------------------------------------------------------------------


def expected_maps(name: str, h: int, w: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the attention of `TINY` networks."""
    if name == "focusnet":
        return {f"gate 1/{1 << i}": (8 << i, h >> i, w >> i) for i in range(3)}
    if name == "r2-attention-unet":
        return {f"skip 1/{1 << i}": (1, h >> i, w >> i) for i in (2, 1)}
    if name == "focusnet-plus":
        entering = {
            "encoder 1/1 unit 1": (4, 0),
            "encoder 1/2 unit 1": (8, 1),
            "encoder 1/2 unit 2": (12, 1),
            "encoder 1/4 unit 1": (12, 2),
            "decoder 1/2 unit 1": (16, 1),
            "decoder 1/1 unit 1": (12, 0),
        }
        return {
            f"{unit} {part}": (channels // 4, h >> i, w >> i)
            for unit, (channels, i) in entering.items()
            for part in "ab"
        }
    if name == "mask-rcnn":
        return {f"pyramid attention P{i}": (16, h >> i, w >> i) for i in (2, 3, 4)}
    return {}


@pytest.mark.parametrize("name", sorted(set(TINY) - _LOOK_AT_CROPS))
def test_attention_is_found_by_name(name: str) -> None:
    network = tiny(name)
    expected = expected_maps(name, 64, 96)
    names = attention_names(network)
    assert len(set(names)) == len(names)
    assert set(names) == set(expected)
    with capture_attention(network) as maps:
        assert maps == {}
        network(torch.rand(1, 3, 64, 96))
    assert {k: tuple(v.shape[1:]) for k, v in maps.items()} == expected
    for key, values in maps.items():
        assert values.min() >= 0, key
        assert values.max() <= 1, key
        assert values.std() > 0, key
        assert not values.requires_grad


@pytest.mark.parametrize(
    ("name", "config", "gates"),
    [
        ("focusnet", "paper", 3),
        ("r2-attention-unet", "paper", 3),
        ("r2-attention-unet", "no-attention", 0),
        ("focusnet-plus", "released", 2 * (12 + 4)),
        ("focusnet-plus", "paper", 2 * (5 + 4)),
        ("mask-rcnn", "paper", 3),
        ("unet", "paper", 0),
        ("retina-vgg", "paper", 0),
    ],
)
def test_the_papers_networks_have_so_many_gates(
    name: str, config: str, gates: int
) -> None:
    with torch.device("meta"):
        network = build(name, named_configs(name)[config])
    names = attention_names(network)
    assert len(names) == len(set(names)) == gates
    assert "skip 1/1" not in names, "the shallowest skip is plain"


def test_nothing_is_kept_when_nobody_looks() -> None:
    network = tiny("focusnet")
    image = torch.rand(1, 3, 16, 16)
    plain = network(image)
    with capture_attention(network, names=("gate 1/2",)) as maps:
        assert torch.equal(network(image), plain), "looking changes nothing"
    assert set(maps) == {"gate 1/2"}
    before = maps["gate 1/2"].clone()
    network(torch.rand(1, 3, 16, 16))
    assert torch.equal(maps["gate 1/2"], before)
    with pytest.raises(ZeroDivisionError), capture_attention(network):
        _ = 1 / 0
    assert not any(m._forward_hooks for m in network.modules())
    with capture_attention(network, names=()) as none:
        network(image)
    assert none == {}


def test_gates_decide_what_the_segmenting_branch_sees() -> None:
    network = tiny("focusnet")
    image = torch.rand(1, 3, 32, 32)
    plain = network(image)
    for gate in (m for m in network.modules() if isinstance(m, Coefficients)):
        hook = gate.register_forward_hook(lambda *a: torch.zeros_like(a[2]))
        other = network(image)
        hook.remove()
        assert (other - plain).abs().max() > 1e-5 * plain.std(), gate.label
    assert not torch.equal(other, plain)
    torch.testing.assert_close(network(image), plain)


# -- parts ---------------------------------------------------------------------------


def test_the_additive_gate_is_equations_one_and_two() -> None:
    gate = AdditiveGate(3, signal=5, inner=4, label="a")
    x, g = torch.randn(2, 3, 4, 6), torch.randn(2, 5, 4, 6)
    found = gate(x, g)
    wx, wg = gate.skip.weight[:, :, 0, 0], gate.signal.weight[:, :, 0, 0]
    psi = gate.psi.weight[0, :, 0, 0]
    for b, i, j in ((0, 0, 0), (0, 3, 5), (1, 2, 1)):
        inner = wx @ x[b, :, i, j] + wg @ g[b, :, i, j] + gate.signal.bias
        alpha = 1 / (1 + (-(psi @ inner.tanh() + gate.psi.bias)).exp())
        torch.testing.assert_close(found[b, :, i, j], alpha * x[b, :, i, j])
    assert gate.skip.bias is None, "one bias is enough"


def test_squeeze_and_excite_weighs_channels_by_their_means() -> None:
    part = SqueezeExcite(32, ratio=8)
    x = torch.randn(2, 32, 3, 5)
    found = part(x)
    for b in range(2):
        means = torch.stack([x[b, c].sum() / 15 for c in range(32)])
        inner = (part.squeeze.weight @ means).clamp(min=0)
        assert inner.shape == (4,)
        weight = 1 / (1 + (-(part.excite.weight @ inner)).exp())
        for c in range(32):
            torch.testing.assert_close(found[b, c], x[b, c] * weight[c])
    assert SqueezeExcite(4).squeeze.out_features == 4, "never a single unit"


def test_an_up_step_doubles_and_looks_below_and_right() -> None:
    step = shuffled(UpStep(3, 4, skip=2))
    x, skip = torch.randn(1, 3, 3, 2), torch.randn(1, 2, 6, 4)
    found = step(x, skip)
    assert found.shape == (1, 4, 6, 4)
    big = torch.zeros(1, 3, 7, 5)
    for i in range(6):
        for j in range(4):
            big[..., i, j] = x[..., i // 2, j // 2]
    up = torch.zeros(1, 4, 6, 4)
    weight, bias = step.convolution.weight, step.convolution.bias
    for i in range(6):
        for j in range(4):
            window = big[0, :, i : i + 2, j : j + 2]
            up[0, :, i, j] = (weight * window).sum((1, 2, 3)) + bias
    expected = step.unit(torch.cat([up.relu(), skip], dim=1))
    torch.testing.assert_close(found, expected)
    assert step.unit.first.in_channels == 4 + 2


@pytest.mark.parametrize("logits", [1, 3])
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_a_side_output_judges_every_pixel_of_the_enlarged_stage(
    scale: int, logits: int
) -> None:
    kinds = {"scale": scale, "inner": 6, "normalise": True}
    part = shuffled(SideOutput(5, logits, **kinds))
    x = torch.randn(2, 5, 3, 4, requires_grad=True)
    big = part.norm(x).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    if part.convolution is not None:
        big = part.convolution(big).clamp(min=0)
    big = part.out(big)
    expected = 1 / (1 + (-big).exp()) if logits == 1 else big.softmax(1)
    found = part(x)
    assert found.shape == (2, logits, 3 * scale, 4 * scale)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    slopes = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*slopes)


def test_normalised_gates_open_here_and_close_there_whatever_their_size() -> None:
    torch.manual_seed(0)
    x, gate = torch.rand(2, 4, 8, 8), 1e4 * (1 + torch.rand(2, 6, 8, 8))
    opened = {}
    for normalise in (False, True):
        scale = FocusScale(4, 6, label="gate", normalise=normalise).train()
        with capture_attention(scale) as maps:
            scale(x, gate)
        opened[normalise] = maps["gate"]
    assert opened[False].min() > 0.999, "sums of this size are all the same to it"
    assert opened[True].mean().item() == pytest.approx(0.5, abs=0.01)
    assert opened[True].std() > 0.1


def test_recurrence_is_equations_four_and_five() -> None:
    part = shuffled(RecurrentConvolution(2, 3, steps=2))
    x = torch.randn(1, 2, 4, 5)
    forward, recurrent = part.forward_weights, part.recurrent_weights.weight

    def convolved(image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        image = functional.pad(image, (1, 1, 1, 1))
        out = torch.zeros(1, 3, 4, 5)
        for i in range(4):
            for j in range(5):
                window = image[0, :, i : i + 3, j : j + 3]
                out[0, :, i, j] = (weight * window).sum((1, 2, 3))
        return out

    p = torch.zeros(1, 3, 4, 5)
    for norm in part.norms:  # t = 0, 1, 2
        z = convolved(x, forward.weight) + convolved(p, recurrent)
        r = (z + forward.bias[:, None, None]).clamp(min=0)
        mean, var, scale, shift = (
            v[:, None, None]
            for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        p = (r - mean) / (var + norm.eps).sqrt() * scale + shift
    torch.testing.assert_close(part(x), p, atol=1e-5, rtol=1e-5)


# -- ablations of the recurrent residual attention U-Net -------------------------------


def shapes(**changes: Any) -> dict[str, tuple[int, ...]]:
    network = tiny("r2-attention-unet", **changes)
    return {k: tuple(v.shape) for k, v in network.state_dict().items()}


def test_ablations_differ_where_they_should() -> None:
    whole = shapes()
    assert shapes(attention=False) == {
        k: v for k, v in whole.items() if not k.startswith("gates.")
    }
    assert shapes(steps=0) == {
        k: v
        for k, v in whole.items()
        if "recurrent_weights" not in k and not ("norms." in k and "norms.0." not in k)
    }
    plain = shapes(residual=False)
    assert set(plain) == {k for k in whole if "project" not in k}
    other = {k for k in plain if plain[k] != whole[k]}
    # Without a projection the first convolution of a block takes its input as it is.
    assert other == {
        f"{side}.{i}.convolutions.0.forward_weights.weight"
        for side, count in (("encoder", 4), ("decoder", 3))
        for i in range(count)
    }


def test_open_gates_are_no_gates() -> None:
    network = tiny("r2-attention-unet")
    twin = tiny("r2-attention-unet", attention=False)
    state = network.state_dict()
    twin.load_state_dict({k: state[k] for k in twin.state_dict()})
    image = torch.rand(1, 3, 32, 40)
    expected = twin(image)
    assert not torch.allclose(network(image), expected, rtol=1e-3, atol=1e-3)
    for part in network.modules():
        if isinstance(part, AdditiveGate):
            part.psi.bias.fill_(1e3)
    torch.testing.assert_close(network(image), expected, atol=1e-4, rtol=1e-4)


def test_without_recurrent_weights_the_last_step_stands_alone() -> None:
    part = shuffled(RecurrentConvolution(3, 4, steps=2))
    single = RecurrentConvolution(3, 4, steps=0).eval()
    single.forward_weights = part.forward_weights
    single.norms[0] = part.norms[2]
    x = torch.randn(1, 3, 6, 7)
    assert not torch.allclose(part(x), single(x), atol=1e-2)
    part.recurrent_weights.weight.zero_()
    torch.testing.assert_close(part(x), single(x))


def test_a_residual_block_passes_its_projected_input_by() -> None:
    block = shuffled(Block(3, 5, steps=1, residual=True))
    x = torch.randn(1, 3, 4, 4)
    projected = block.project(x)
    torch.testing.assert_close(
        block(x) - projected, block.convolutions(projected), atol=1e-5, rtol=1e-4
    )
    for part in block.convolutions[1].norms:
        part.weight.zero_()
        part.bias.zero_()
    torch.testing.assert_close(block(x), projected)


# -- ensembles -------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", DENSE)
def test_an_ensemble_tells_the_mean_of_its_members(name: str, classes: int) -> None:
    members = [tiny(name, classes=classes) for _ in range(3)]
    ensemble = gather(members)
    assert isinstance(ensemble, Ensemble)
    assert system_of("ensemble", ensemble.config.model_dump()) == system_of(name)
    image = torch.rand(2, 3, 21, 34)
    single = [probabilities(member(image)) for member in members]
    found = probabilities(ensemble(image))
    torch.testing.assert_close(found, sum(single) / 3, atol=1e-5, rtol=1e-4)
    assert all((found - one).abs().max() > 1e-3 for one in single)
    assert ensemble.multiple == members[0].multiple
    assert gather(members[:1]) is members[0]


def test_sure_members_that_contradict_each_other_are_unsure_together() -> None:
    members = [tiny("unet"), tiny("unet")]
    for member, sign in zip(members, (1, -1), strict=True):
        member.out.weight.zero_()
        member.out.bias.fill_(sign * 200.0)
    logits = gather(members)(torch.rand(1, 3, 8, 8))
    torch.testing.assert_close(logits, torch.zeros(1, 1, 8, 8), atol=1e-5, rtol=0)
    assert gather([members[0]] * 2)(torch.rand(1, 3, 8, 8)).isfinite().all()


def test_networks_that_give_pixels_no_logits_are_not_averaged() -> None:
    retina = [tiny("retina-vgg"), tiny("retina-vgg")]
    assert gather(retina) is retina[0]
