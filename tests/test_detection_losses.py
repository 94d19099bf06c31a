"""Mask R-CNN's losses against loops."""

from __future__ import annotations

import math

import pytest
import torch

from napari_fovea.errors import TrainingError
from napari_fovea.losses import box_loss, class_loss, mask_loss, objectness_loss


def surprise(logit: float, truth: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -truth * math.log(p) - (1 - truth) * math.log(1 - p)


def test_objectness_averages_over_what_counts() -> None:
    logits = torch.tensor([1.5, -2.0, 0.3, 4.0, -1.0], requires_grad=True)
    labels = torch.tensor([1, 0, -1, 0, 1])
    value = objectness_loss(logits, labels)
    value.backward()
    terms = [
        surprise(float(x), int(g))
        for x, g in zip(logits.detach(), labels, strict=True)
        if g >= 0
    ]
    assert float(value.detach()) == pytest.approx(sum(terms) / 4)
    assert logits.grad[2] == 0
    assert logits.grad[[0, 1, 3, 4]].all()


@pytest.mark.parametrize("beta", [1 / 9, 1.0])
def test_boxes_are_summed_and_divided(beta: float) -> None:
    chance = torch.Generator().manual_seed(1)
    predicted, target = torch.randn(2, 7, 4, generator=chance).unbind()
    target[:3] = predicted[:3] + 0.05
    total = 0.0
    for d in (predicted - target).flatten().abs().tolist():
        total += d * d / (2 * beta) if d < beta else d - beta / 2
    value = box_loss(predicted, target, normaliser=12, beta=beta)
    assert float(value) == pytest.approx(total / 12, rel=1e-5)
    one = box_loss(predicted, target, normaliser=0, beta=beta)
    assert float(one) == pytest.approx(total, rel=1e-5)


def test_beta_of_boxes_is_a_ninth_by_default() -> None:
    predicted, target = torch.full((1, 4), 0.1), torch.zeros(1, 4)
    value = box_loss(predicted, target, normaliser=1)
    assert float(value) == pytest.approx(4 * 0.1**2 * 9 / 2)


def test_classes_average_over_what_counts() -> None:
    chance = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 3, generator=chance, requires_grad=True)
    labels = torch.tensor([2, -1, 0, 1, -1, 2])
    value = class_loss(logits, labels)
    value.backward()
    total = 0.0
    for row, label in zip(logits.detach().tolist(), labels.tolist(), strict=True):
        if label >= 0:
            total += math.log(sum(map(math.exp, row))) - row[label]
    assert float(value.detach()) == pytest.approx(total / 4, rel=1e-5)
    assert not logits.grad[[1, 4]].any()


def test_masks_count_on_the_true_channel_alone() -> None:
    chance = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 4, 5, 5, generator=chance, requires_grad=True)
    labels = torch.tensor([3, 0, 2])
    masks = torch.rand(3, 5, 5, generator=chance)
    value = mask_loss(logits, labels, masks)
    value.backward()
    plain, total = logits.detach(), 0.0
    for n, k in enumerate(labels.tolist()):
        for y in range(5):
            for x in range(5):
                total += surprise(float(plain[n, k, y, x]), float(masks[n, y, x]))
    assert float(value.detach()) == pytest.approx(total / 75, rel=1e-5)
    for n, k in enumerate(labels.tolist()):
        for c in range(4):
            assert bool(logits.grad[n, c].any()) == (c == k)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_nothing_to_average_is_a_zero_with_a_gradient(kind: torch.dtype) -> None:
    none = torch.zeros(0, dtype=torch.long)
    ignored = torch.full((3,), -1)
    for shape, loss in (
        ((0,), lambda x: objectness_loss(x, none)),
        ((3,), lambda x: objectness_loss(x, ignored)),
        ((0, 4), lambda x: box_loss(x, torch.zeros(0, 4), normaliser=0)),
        ((0, 4), lambda x: box_loss(x, torch.zeros(0, 4), normaliser=256)),
        ((0, 2), lambda x: class_loss(x, none)),
        ((3, 2), lambda x: class_loss(x, ignored)),
        ((0, 2, 7, 7), lambda x: mask_loss(x, none, torch.zeros(0, 7, 7))),
    ):
        logits = torch.ones(shape, dtype=kind, requires_grad=True)
        value = loss(logits)
        assert value.shape == ()
        assert float(value.detach()) == 0
        value.backward()
        assert logits.grad is not None
        assert not logits.grad.any()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [50.0, 1e4])
def test_large_logits_under_autocast(kind: torch.dtype, scale: float) -> None:
    chance = torch.Generator().manual_seed(4)

    def large(*shape: int) -> torch.Tensor:
        signs = torch.randn(shape, generator=chance).sign()
        return (signs * scale).to(kind).requires_grad_()

    labels = torch.tensor([0, 1, -1, 1])
    inputs = large(4), large(4, 4), large(4, 2), large(4, 2, 3, 3)
    with torch.autocast("cpu", dtype=kind):
        values = [
            objectness_loss(inputs[0], labels),
            box_loss(inputs[1], torch.zeros(4, 4, dtype=kind), normaliser=4),
            class_loss(inputs[2], labels),
            mask_loss(inputs[3], labels.clamp(min=0), torch.ones(4, 3, 3) > 0),
        ]
    for value, leaf in zip(values, inputs, strict=True):
        assert value.dtype == torch.float32
        assert math.isfinite(float(value.detach()))
        value.backward()
        assert torch.isfinite(leaf.grad).all()
    assert float(values[1].detach()) == pytest.approx(
        4 * (float(inputs[1][0, 0].detach().abs()) - 1 / 18), rel=1e-4
    )


def test_wrong_shapes_are_told() -> None:
    labels = torch.tensor([0, 1, 0])
    maps = torch.zeros(3, 2, 7, 7)
    for call, told in (
        (lambda: objectness_loss(torch.zeros(4), labels), ("(3,)", "(4,)")),
        (lambda: objectness_loss(torch.zeros(3, 1), labels), ("(3, 1)", "(3,)")),
        (lambda: objectness_loss(torch.zeros(3), labels + 1), ("class 2", "0 to 1")),
        (
            lambda: box_loss(torch.zeros(3, 4), torch.zeros(2, 4), normaliser=1),
            ("(2, 4)", "(3, 4)"),
        ),
        (
            lambda: box_loss(torch.zeros(3, 5), torch.zeros(3, 5), normaliser=1),
            ("(3, 5)", "(3, 4)"),
        ),
        (lambda: class_loss(torch.zeros(3), labels), ("(3,)", "(regions, classes)")),
        (lambda: class_loss(torch.zeros(2, 2), labels), ("(3,)", "(2,)")),
        (lambda: class_loss(torch.zeros(3, 1), labels), ("class 1", "0 to 0")),
        (lambda: mask_loss(maps[0], labels, maps[:, 0]), ("(2, 7, 7)", "height")),
        (lambda: mask_loss(maps, labels[:2], maps[:, 0]), ("(2,)", "(3,)")),
        (lambda: mask_loss(maps, labels, maps), ("(3, 2, 7, 7)", "(3, 7, 7)")),
        (lambda: mask_loss(maps, labels - 1, maps[:, 0]), ("-1", "0 to 1")),
    ):
        with pytest.raises(TrainingError) as caught:
            call()
        assert all(part in str(caught.value) for part in told), str(caught.value)
