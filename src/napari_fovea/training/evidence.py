"""The instant learner: evidence for classes, fitted to strokes by convex descent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from napari_fovea.networks import RetinaConfig
from napari_fovea.training.guard import balanced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from napari_fovea.networks import Adapted, AdaptedRetina
    from napari_fovea.training.guard import Scores, Stroke
    from napari_fovea.training.looks import Rows

    Network = Adapted | AdaptedRetina

RIDGE = 0.03
"""Weight of the squared evidence for six strokes; the more there are, the less.

Ten and a hundred times as much is tried too."""

CELL_RIDGE = 0.3
"""The same for cells, which see more than what was painted in them."""

# How much is to be read from each kind of feature, after all were brought to one
# spread: few strokes say little of many features.
_OF_SHAPE, _OF_TAPS = 0.4, 0.1
_OF_BIAS = 0.1  # of the ridge
_STROKES, _LEAST = 6, 0.05  # for which a ridge is meant; most that is taken off it
_RIDGES = (1, 10, 100)  # that are tried
_ALIKE, _KNOWS = 0.005, 0.05  # scores that are the same; that are about as good
_MOST = 6000  # places that are fitted to
_ITERATIONS = 60


@dataclass(frozen=True)
class Gathered:
    """Rows of several planes, one after the other.

    Attributes
    ----------
    features, prior, target, weight : Tensor
        As in `Rows`.
    base : Tensor of float32, shape (n, K)
        Class probabilities before anything is learned.
    strokes : tuple of Stroke
        All strokes.
    index : Tensor of int64, shape (n,)
        Stroke of each row; −1 where there are several.
    scale, shift : Tensor of float32, shape (F,)
        What is subtracted from features, and what they are then multiplied by.
    ridge : float
        How much evidence is held back.
    """

    features: torch.Tensor
    prior: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor
    base: torch.Tensor
    strokes: tuple[Stroke, ...]
    index: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor
    ridge: float = RIDGE


def gather(
    network: Network,
    rows: Sequence[tuple[tuple[str, int], Rows]],
    strokes: Sequence[Stroke],
    *,
    seed: int = 0,
) -> Gathered:
    """Put the rows of several planes together, and find how to scale them."""
    from napari_fovea.training.looks import before

    config = network.config
    known = {(s.plane, s.number): i for i, s in enumerate(strokes)}
    index = torch.cat(
        [
            torch.tensor([known.get((key, n), -1) for n in r.strokes.tolist()])
            for key, r in rows
        ]
    ).long()
    parts = [r for _, r in rows]
    features = torch.cat([r.features for r in parts])
    prior = torch.cat([r.prior for r in parts])
    target = torch.cat([r.target for r in parts])
    weight_of_rows = torch.cat([r.weight for r in parts])
    if config.kept:
        base = torch.cat([before(r, config.belongs) for r in parts])
    else:
        base = torch.full_like(target, 1 / target.shape[1])
    spread = torch.stack([r.spread for r in parts]).mean(0)
    light = network.image.light
    total, spoken = network.image.count, config.spoken
    c = config.channels
    gray = bool((features[:, :c] == features[:, :1]).all())
    weight = torch.full_like(spread, _OF_TAPS)
    weight[:light] = c**-0.5 if gray else 1.0
    weight[light:total] = _OF_SHAPE
    scale = weight / (spread + 1e-4)
    shift = features.mean(0)
    # The opinion is within ±1, and 0 means something.
    scale[total : total + spoken], shift[total : total + spoken] = 1.0, 0.0
    chosen = _some(target.argmax(1), seed)
    return Gathered(
        features[chosen],
        prior[chosen],
        target[chosen],
        weight_of_rows[chosen],
        base[chosen],
        tuple(strokes),
        index[chosen],
        scale,
        shift,
        CELL_RIDGE if isinstance(config, RetinaConfig) else RIDGE,
    )


def _some(classes: torch.Tensor, seed: int) -> torch.Tensor:
    """Choose rows if there are very many, of every class alike."""
    if len(classes) <= _MOST:
        return torch.arange(len(classes))
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    values = torch.unique(classes)
    share = _MOST // len(values)
    parts = [order[classes[order] == c][:share] for c in values]
    return torch.cat(parts).sort().values


def class_logits(gathered: Gathered, weights: torch.Tensor) -> torch.Tensor:
    """Logits (n, K) of rows, given what evidence is read (F + 1, E)."""
    evidence = gathered.features.double() @ weights[:-1] + weights[-1]
    if evidence.shape[1] == 1:
        evidence = torch.cat([-evidence / 2, evidence / 2], dim=1)
    return gathered.prior.double() + evidence


def beginning(gathered: Gathered, start: torch.Tensor) -> torch.Tensor:
    """Class probabilities of rows by the trunk, which may read evidence itself."""
    if not bool(start.any()):
        return gathered.base
    return class_logits(gathered, start).softmax(1).float()


def fit_evidence(
    gathered: Gathered,
    start: torch.Tensor,
    *,
    use: torch.Tensor | None = None,
    told: Callable[[int, float], None] = lambda step, loss: None,
) -> torch.Tensor:
    r"""Find what evidence to read.

    Cross-entropy in which a class counts with the root of what was painted of it,
    halfway between pixels that count alike and classes that do, and a ridge that
    pulls towards what was read before:

    .. math:: \frac1{\sum_k \sqrt{n_k}}\sum_k \frac1{\sqrt{n_k}}
              \sum_{i \in k} -\log p_k(x_i)
              + \frac{6\lambda}{2m} \lVert w - w_0 \rVert^2

    with *m* strokes.

    Parameters
    ----------
    gathered : Gathered
        Places and what is seen there.
    start : Tensor, shape (F + 1, E)
        What was read before.
    use : Tensor of bool, shape (n,), optional
        Rows to learn from; all by default.
    told : callable
        Called with the number of each evaluation and its loss.

    Returns
    -------
    Tensor of float64, shape (F + 1, E)
    """
    offset = class_logits(gathered, start)
    x = ((gathered.features - gathered.shift) * gathered.scale).double()
    target = gathered.target.double() * gathered.weight.double()[:, None]
    if use is not None:
        offset, x, target = offset[use], x[use], target[use]
    weight = target / target.sum(0).clamp(min=1e-12).sqrt()  # (n, K)
    weight = weight / weight.sum()
    index = gathered.index if use is None else gathered.index[use]
    strokes = len(torch.unique(index[index >= 0]))
    ridge = gathered.ridge * max(_LEAST, _STROKES / max(1, strokes))
    found = torch.zeros_like(start).requires_grad_(True)
    descent = torch.optim.LBFGS(
        [found],
        max_iter=_ITERATIONS,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-6,
    )
    step = 0

    def closure() -> torch.Tensor:
        nonlocal step
        descent.zero_grad()
        evidence = x @ found[:-1] + found[-1]
        if evidence.shape[1] == 1:
            evidence = torch.cat([-evidence / 2, evidence / 2], dim=1)
        logs = functional.log_softmax(offset + evidence, dim=1)
        loss = -(weight * logs).sum()
        size = (found[:-1] ** 2).sum() + _OF_BIAS * (found[-1] ** 2).sum()
        total: torch.Tensor = loss + ridge / 2 * size
        torch.autograd.backward(total)
        step += 1
        told(step, float(loss.detach()))
        return total

    with torch.enable_grad():
        descent.step(closure)  # type: ignore[no-untyped-call]
    change = found.detach().clone()
    # From scaled features back to what a network reads.
    change[:-1] *= gathered.scale.double()[:, None]
    change[-1] -= gathered.shift.double() @ change[:-1]
    return start + change


def row_scores(
    gathered: Gathered, probabilities: torch.Tensor, *, of: torch.Tensor | None = None
) -> Scores:
    """Mean probability (n, K) given to what was painted, by stroke."""
    given = (gathered.target * probabilities).sum(1).float()
    index = gathered.index if of is None else gathered.index[of]
    given = given if of is None else given[of]
    weight = gathered.weight if of is None else gathered.weight[of]
    scores = {}
    for i in torch.unique(index).tolist():
        if i >= 0:
            own = index == i
            mass = weight[own].sum().clamp(min=1e-12)
            scores[gathered.strokes[i]] = float((given * weight)[own].sum() / mass)
    return scores


def held_out(
    gathered: Gathered,
    start: torch.Tensor,
    parts: Mapping[Stroke, int],
    *,
    use: torch.Tensor | None = None,
) -> tuple[Scores, Scores]:
    """Score every stroke by a fit to the others, part by part.

    Parameters
    ----------
    gathered : Gathered
        Places and what is seen there.
    start : Tensor, shape (F + 1, E)
        What was read before.
    parts : mapping of Stroke to int
        From `guard.fold_strokes`; those of part −1 are never held out.
    use : Tensor of bool, shape (n,), optional
        Rows that may be used; all by default.

    Returns
    -------
    given : dict
        Mean probability given to what was painted, by stroke.
    right : dict
        Share of each stroke that was told right.
    """
    several = min(parts.values(), default=0) - 2
    numbers = [parts.get(stroke, several) for stroke in gathered.strokes]
    part = torch.tensor([*numbers, several])[gathered.index]
    # What several strokes share cannot be held out with one of them.
    usable = part != several
    if use is not None:
        usable &= use
    given: Scores = {}
    right: Scores = {}
    for number in sorted(set(parts.values()) - {-1}):
        held = (part == number) & usable
        if held.any():
            found = fit_evidence(gathered, start, use=usable & ~held)
            told = class_logits(gathered, found).softmax(1)
            given |= row_scores(gathered, told, of=held)
            right |= _right(gathered, told, of=held)
    return given, right


class Tried(NamedTuple):
    """The best way to fit that was found so far.

    Attributes
    ----------
    gathered : Gathered
        With the ridge that was found best.
    scores : dict
        Mean probability given to strokes when they were held out.
    """

    gathered: Gathered
    scores: Scores


def choose_ridge(
    gathered: Gathered,
    start: torch.Tensor,
    parts: Mapping[Stroke, int],
    *,
    use: torch.Tensor | None = None,
) -> Iterator[Tried]:
    """Find how much evidence to hold back.

    A network that tells strokes about as well by itself loses by what is read beside
    it where nothing was painted: as much is held back as strokes do not speak
    against. One that does not needs all that can be read. Where strokes of a class
    cannot be held out, nothing is known of this, and the ridge stays too.

    Parameters
    ----------
    others
        See `held_out`.

    Yields
    ------
    Tried
        After each ridge.
    """
    classes = {stroke.label for stroke in gathered.strokes}
    alone = balanced(_right(gathered, beginning(gathered, start), of=use))
    tried: list[tuple[float, Tried]] = []
    for factor in _RIDGES:
        own = replace(gathered, ridge=factor * gathered.ridge)
        given, right = held_out(own, start, parts, use=use)
        tried.append((balanced(right), Tried(own, given)))
        best = max(score for score, _ in tried)
        yield [some for score, some in tried if score >= best - _ALIKE][-1]
        if {stroke.label for stroke in right} != classes or alone < best - _KNOWS:
            return


def _right(
    gathered: Gathered, probabilities: torch.Tensor, *, of: torch.Tensor | None = None
) -> Scores:
    """Share of each stroke whose class is the most probable one."""
    sure = functional.one_hot(probabilities.argmax(1), probabilities.shape[1])
    return row_scores(gathered, sure, of=of)
