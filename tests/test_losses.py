"""Losses against their equations, written out pixel by pixel."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_fovea.errors import TrainingError
from napari_fovea.losses import (
    LOSSES,
    adaptive_log_hybrid_loss,
    bce_dice_loss,
    cross_entropy,
    dice_loss,
    focal_tversky_loss,
    hybrid_loss,
    tversky_loss,
    weighted_cross_entropy,
)

every_loss = pytest.mark.parametrize("name", LOSSES)
seeds = st.integers(0, 2**32 - 1)
SMOOTH = 1e-5


def make(
    seed: int, channels: int, *, batch: int = 2, size: tuple[int, ...] = (5, 4)
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, target and a mask that leaves about a third out."""
    chance = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, channels, *size, generator=chance)
    target = torch.randint(max(channels, 2), (batch, *size), generator=chance)
    return logits, target, torch.rand(batch, *size, generator=chance) > 0.3


def pixels(
    logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor
) -> list[tuple[list[float], int]]:
    """Class probabilities and class of each pixel that counts, in plain Python."""
    found = []
    shape = target.shape
    for place in product(*map(range, shape)):
        if not mask[place]:
            continue
        scores = [
            float(logits[place[0], c, *place[1:]]) for c in range(logits.shape[1])
        ]
        if len(scores) == 1:
            p = 1 / (1 + math.exp(-scores[0]))
            found.append(([1 - p, p], int(target[place])))
        else:
            powers = [math.exp(s) for s in scores]
            found.append(([e / sum(powers) for e in powers], int(target[place])))
    return found


def plain_cross_entropy(seen: list, omega: float | None = None) -> float:
    total = 0.0
    for p, g in seen:
        weight = 1.0 if omega is None else omega if g > 0 else 1 - omega
        total -= weight * math.log(p[g])
    return total / len(seen)


def plain_tversky(
    seen: list,
    alpha: float,
    beta: float,
    *,
    smooth: float = SMOOTH,
    background: bool = False,
) -> list[float]:
    """Index T of each class."""
    classes = len(seen[0][0])
    scores = []
    for k in range(0 if background else 1, classes):
        tp = fp = fn = 0.0
        for p, g in seen:
            tp += p[k] * (g == k)
            fp += p[k] * (g != k)
            fn += (1 - p[k]) * (g == k)
        scores.append((tp + smooth) / (tp + alpha * fp + beta * fn + smooth))
    return scores


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("channels", "size"), [(1, (5, 4)), (2, (5, 4)), (4, (5, 4)), (3, (2, 3, 4))]
)
def test_losses_equal_their_equations(
    channels: int, size: tuple[int, ...], masked: bool
) -> None:
    logits, target, mask = make(7, channels, size=size)
    seen = pixels(logits, target, mask if masked else torch.ones_like(mask))
    given_mask = mask if masked else None

    def value(loss: object, **kwargs: float) -> float:
        result = loss(logits, target, mask=given_mask, **kwargs)  # type: ignore[operator]
        assert result.shape == ()
        assert result.dtype == torch.float32
        return pytest.approx(float(result), rel=1e-4)

    ce, balanced = plain_cross_entropy(seen), plain_cross_entropy(seen, 0.7)
    dice = 1 - np.mean(plain_tversky(seen, 0.5, 0.5, smooth=SMOOTH / 2))
    missing = [1 - t for t in plain_tversky(seen, 0.3, 0.7)]
    hybrid = balanced / 2 + np.mean(missing) / 2
    log_hybrid = hybrid - (0.1 - 10 * math.log(1 + 0.1 / 0.5))
    assert hybrid > 0.1
    assert ce == value(cross_entropy)
    assert balanced == value(weighted_cross_entropy)
    assert plain_cross_entropy(seen, 0.9) == value(
        weighted_cross_entropy, positive_weight=0.9
    )
    assert dice == value(dice_loss)
    assert np.mean(missing) == value(tversky_loss)
    assert np.mean([m**0.75 for m in missing]) == value(focal_tversky_loss)
    assert np.mean([m**2 for m in missing]) == value(focal_tversky_loss, gamma=2)
    assert ce + dice == value(bce_dice_loss)
    assert hybrid == value(hybrid_loss)
    assert 0.2 * balanced + 0.8 * np.mean(missing) == value(hybrid_loss, share=0.2)
    assert log_hybrid == value(adaptive_log_hybrid_loss)


@pytest.mark.parametrize("channels", [1, 3])
def test_background_counts_on_request(channels: int) -> None:
    logits, target, mask = make(3, channels)
    seen = pixels(logits, target, mask)
    for alpha, beta in ((0.3, 0.7), (0.6, 0.2)):
        expected = 1 - np.mean(plain_tversky(seen, alpha, beta, background=True))
        result = tversky_loss(
            logits,
            target,
            mask=mask,
            alpha=alpha,
            beta=beta,
            include_background=True,
        )
        assert float(result) == pytest.approx(expected, rel=1e-4)
    both = dice_loss(logits, target, mask=mask, include_background=True)
    terms = plain_tversky(seen, 0.5, 0.5, smooth=SMOOTH / 2, background=True)
    assert float(both) == pytest.approx(1 - np.mean(terms), rel=1e-4)


def test_alpha_weighs_false_positives_and_beta_negatives() -> None:
    target = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]])
    too_many = torch.tensor([[[20.0] * 6 + [-20.0] * 2]])
    too_few = torch.tensor([[[20.0] * 2 + [-20.0] * 6]])
    kwargs = {"alpha": 0.1, "beta": 0.9}
    assert float(tversky_loss(too_many, target, **kwargs)) == pytest.approx(
        1 - 4 / (4 + 0.1 * 2), abs=1e-5
    )
    assert float(tversky_loss(too_few, target, **kwargs)) == pytest.approx(
        1 - 2 / (2 + 0.9 * 2), abs=1e-5
    )


@given(seeds, st.sampled_from([1, 2, 3]))
@settings(deadline=None, max_examples=30)
def test_dice_is_tversky_of_equal_halves(seed: int, channels: int) -> None:
    logits, target, mask = make(seed, channels)
    dice = dice_loss(logits, target, mask=mask)
    even = tversky_loss(logits, target, mask=mask, alpha=0.5, beta=0.5)
    focal = focal_tversky_loss(
        logits, target, mask=mask, alpha=0.5, beta=0.5, gamma=1.0
    )
    assert float(dice) == pytest.approx(float(even), abs=2e-4)
    assert float(focal) == pytest.approx(float(even), abs=1e-6)


@given(
    seeds, st.sampled_from(list(LOSSES)), st.sampled_from([1, 2, 4]), st.floats(0, 1)
)
@settings(deadline=None, max_examples=60)
def test_what_the_mask_leaves_out_has_no_influence(
    seed: int, name: str, channels: int, share: float
) -> None:
    logits, target, _ = make(seed, channels)
    chance = torch.Generator().manual_seed(seed ^ 1)
    mask = torch.rand(target.shape, generator=chance) < share
    loss = LOSSES[name]
    strange = torch.where(
        mask[:, None], logits, 1e4 * torch.randn(logits.shape, generator=chance)
    )
    void = torch.where(mask, target, 255)
    values, gradients = [], []
    for some_logits, some_target in ((logits, target), (strange, void)):
        leaf = some_logits.clone().requires_grad_()
        value = loss(leaf, some_target, mask=mask)
        value.backward()
        values.append(float(value.detach()))
        gradients.append(leaf.grad)
    assert values[0] == values[1]
    assert torch.equal(gradients[0], gradients[1])
    outside = ~mask[:, None].expand_as(logits)
    assert not gradients[0][outside].any()
    if mask.any():
        assert gradients[0].any()


@every_loss
def test_even_infinities_do_not_pass_the_mask(name: str) -> None:
    logits, target, mask = make(1, 1)
    mask[0, 0, 0] = mask[0, 0, 1] = False
    plain = LOSSES[name](logits, target, mask=mask)
    logits[0, :, 0, 0], logits[0, :, 0, 1] = math.nan, math.inf
    assert torch.equal(LOSSES[name](logits, target, mask=mask), plain)


@every_loss
@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_counts(name: str, channels: int) -> None:
    logits, target, mask = make(2, channels)
    logits.requires_grad_()
    nothing = torch.zeros_like(mask)
    value = LOSSES[name](logits, torch.full_like(target, 255), mask=nothing)
    assert float(value.detach()) == 0
    value.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


@every_loss
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fill", [0, 1])
@pytest.mark.parametrize("scale", [0.0, 1.0, 50.0, 1e4])
@pytest.mark.parametrize("sign", [-1, 1])
def test_one_class_alone_is_finite(
    name: str, channels: int, fill: int, scale: float, sign: int
) -> None:
    target = torch.full((2, 6, 6), fill)
    logits = torch.full((2, channels, 6, 6), sign * scale)
    if channels > 1:
        logits[:, 0] *= -1
    logits.requires_grad_()
    value = LOSSES[name](logits, target)
    value.backward()
    assert math.isfinite(float(value.detach()))
    assert float(value.detach()) >= 0
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@every_loss
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 50.0, 1e4])
def test_autocast_changes_nothing(
    name: str, kind: torch.dtype, channels: int, scale: float
) -> None:
    logits, target, mask = make(5, channels, size=(16, 16))
    half = (logits.sign() * scale + logits).to(kind)
    exact, cast = (x.clone().requires_grad_() for x in (half.float(), half))
    expected = LOSSES[name](exact, target, mask=mask)
    with torch.autocast("cpu", dtype=kind):
        value = LOSSES[name](cast, target, mask=mask)
    assert value.dtype == torch.float32
    assert float(value.detach()) == float(expected.detach())
    expected.backward()
    value.backward()
    assert torch.isfinite(cast.grad).all()
    assert torch.equal(cast.grad, exact.grad.to(kind))


def test_a_perfect_prediction_costs_nothing() -> None:
    for channels in (1, 3):
        _, target, _ = make(4, channels)
        if channels == 1:
            logits = 40.0 * (2 * target[:, None] - 1)
        else:
            logits = 40.0 * torch.stack([target == k for k in range(channels)], dim=1)
        for name, loss in LOSSES.items():
            assert float(loss(logits, target)) == pytest.approx(0, abs=1e-4), name


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("channels", [1, 3])
def test_descent_finds_the_target(name: str, channels: int) -> None:
    _, target, _ = make(6, channels)
    logits = torch.zeros(2, channels, 5, 4, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.3)
    for _ in range(60):
        adam.zero_grad()
        LOSSES[name](logits, target).backward()
        adam.step()
    found = logits[:, 0] > 0 if channels == 1 else logits.argmax(1)
    assert torch.equal(found.long(), target)


def test_adaptive_logarithm_is_continuous_and_rises() -> None:
    target = torch.tensor([[0, 1] * 8])
    hybrids, values = [], []
    for x in np.linspace(0, 6, 4001):
        logits = float(x) * (2 * target[:, None] - 1)
        hybrids.append(float(hybrid_loss(logits, target)))
        values.append(float(adaptive_log_hybrid_loss(logits, target)))
    plain, log = np.array(hybrids[::-1]), np.array(values[::-1])
    assert plain[0] < 0.1 < plain[-1]  # both branches are seen
    steps, rises = np.diff(plain), np.diff(log)
    assert (rises > 0).all()
    # No slope of the two branches exceeds ω / ε = 20: a jump at the joint would.
    assert (rises <= 20.1 * steps + 1e-5).all()
    low = plain < 0.1
    np.testing.assert_allclose(log[low], 10 * np.log(1 + plain[low] / 0.5), rtol=1e-4)
    offset = 0.1 - 10 * math.log(1 + 0.1 / 0.5)
    np.testing.assert_allclose(log[~low], plain[~low] - offset, rtol=1e-5)


def test_focal_power_meets_its_line() -> None:
    target = torch.ones(1, 8, dtype=torch.long)
    for x in (8.0, 12.0, 13.0, 14.0, 14.5, 15.0, 16.0, 100.0):
        logits = torch.full((1, 1, 8), x, requires_grad=True)
        missing = float(tversky_loss(logits, target).detach())
        value = focal_tversky_loss(logits, target)
        value.backward()
        expected = missing**0.75 if missing > 1e-6 else missing * 1e-6**-0.25
        assert float(value.detach()) == pytest.approx(max(expected, 0), rel=1e-3)
        assert torch.isfinite(logits.grad).all()


@every_loss
def test_wrong_shapes_say_what_was_expected(name: str) -> None:
    loss = LOSSES[name]
    logits, target, mask = make(0, 3)
    for call, told in (
        (lambda: loss(logits, target[:, :4]), ("(2, 4, 4)", "(2, 5, 4)", "target")),
        (lambda: loss(logits, target[:, None]), ("(2, 1, 5, 4)", "(2, 3, 5, 4)")),
        (lambda: loss(logits, target, mask=mask[:1]), ("(1, 5, 4)", "mask")),
        (lambda: loss(logits[0, 0, 0], target), ("(4,)", "(batch, classes, …)")),
        (lambda: loss(logits, target + 0.5), ("torch.float32", "integers")),
        (lambda: loss(logits, target + 253), ("255", "0 to 2")),
        (lambda: loss(logits, target - 1), ("-1", "0 to 2")),
        (lambda: loss(logits[:, :1], target), ("class 2", "0 to 1")),
    ):
        with pytest.raises(TrainingError) as caught:
            call()
        message = str(caught.value)
        assert all(part in message for part in told), message
        assert message.endswith(".")
        assert message.count(". ") == 0
