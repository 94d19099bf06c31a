"""From a model to one that can learn from strokes, and what is told of it."""

from __future__ import annotations

import copy
import datetime
import platform
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from napari_fovea.errors import TrainingError
from napari_fovea.networks import (
    Adapted,
    AdaptedRetina,
    DenseConfig,
    MaskRCNNConfig,
    PatchCenterConfig,
    RetinaConfig,
    build,
    name_of,
    validate,
)
from napari_fovea.training.samples import VOID

if TYPE_CHECKING:
    from collections.abc import Mapping

    from napari_fovea.models import Model
    from napari_fovea.training.guard import Verdict
    from napari_fovea.training.painted import Painted
    from napari_fovea.training.samples import Sample


_OF_PATCHES = (
    "Model {name!r} tells the class of patches, and learns only from whole folders of "
    "labels: use 'napari-fovea train', or choose another model."
)


def adapted(model: Model, classes: tuple[str, ...]) -> Model:
    """Wrap a model's network so that evidence can be read beside its opinion.

    Parameters
    ----------
    model : Model
        Of pixels, or a retina model. One that reads evidence already goes on from it.
    classes : tuple of str
        Names of the classes, background first. If there are as many as the model's
        they are the same; else they begin without any opinion.

    Raises
    ------
    TrainingError
        If there is nothing to be refitted in a model of this kind.
    """
    network, config = model.network, model.config
    kept = len(classes) == len(model.classes)
    if isinstance(network, Adapted | AdaptedRetina) and kept:
        return replace(model, network=copy.deepcopy(network), classes=classes)
    belongs = model.outputs
    if isinstance(network, Adapted | AdaptedRetina):
        belongs = network.config.belongs
        config = validate(network.config.base, network.config.settings)
        network = network.base
    if isinstance(config, MaskRCNNConfig):
        raise TrainingError(
            f"Model {model.name!r} finds whole objects, and cannot be refitted in an "
            "instant: choose thorough learning, or another model."
        )
    if isinstance(config, PatchCenterConfig):
        raise TrainingError(_OF_PATCHES.format(name=model.name))
    outputs = model.outputs if kept else tuple(range(len(classes)))
    settings: dict[str, Any] = {
        "base": name_of(network),
        "settings": config.model_dump(mode="json"),
        "belongs": belongs,
        "kept": kept,
        "channels": config.channels,
        "classes": len(outputs),
    }
    if isinstance(config, RetinaConfig):
        settings |= {"d": config.d, "r": config.r}
    elif not isinstance(config, DenseConfig):
        raise TrainingError(
            f"Nothing is known of how to refit {name_of(network)}; expected a network "
            "of pixels or a retina network."
        )
    kind = "adapted-retina" if isinstance(config, RetinaConfig) else "adapted"
    wrapped = build(kind, settings)
    assert isinstance(wrapped, Adapted | AdaptedRetina)
    wrapped.base.load_state_dict(network.state_dict())
    wrapped.eval().requires_grad_(False)
    return replace(
        model,
        network=wrapped,
        classes=classes,
        outputs=outputs,
        depths=model.depths if kept else None,
    )


def student(trunk: Model, painted: Painted) -> Model:
    """Make the model that learns from strokes with all its weights.

    It is the trunk where the classes are as many; else its last layer begins anew.

    Raises
    ------
    TrainingError
        If a network of this kind cannot learn from what was painted.
    """
    config = trunk.config
    if isinstance(config, PatchCenterConfig):
        raise TrainingError(_OF_PATCHES.format(name=trunk.name))
    instances = any(p.instances is not None for p in painted.planes)
    if isinstance(config, MaskRCNNConfig) and not instances:
        raise TrainingError(
            f"Model {trunk.name!r} finds whole objects, and cannot learn from strokes; "
            "expected complete objects, each with a number of its own and 0 for "
            "background: label all objects of an image so, or choose another model."
        )
    if len(painted.classes) == len(trunk.classes):
        return replace(trunk, classes=painted.classes)
    network = trunk.network
    if isinstance(network, Adapted | AdaptedRetina):
        network = network.base
    count = len(painted.classes)
    inner: Any = network.config
    settings = _with_classes(inner.model_dump(), count)
    fresh = build(name_of(network), settings)
    with torch.device("meta"):
        other = build(name_of(network), _with_classes(settings, count + 1)).state_dict()
    own, known = fresh.state_dict(), network.state_dict()
    # What depends on the number of classes begins anew, even where its size happens
    # to be the same: depths are no classes.
    same = [k for k in own if own[k].shape == other[k].shape == known[k].shape]
    own.update({k: known[k] for k in same})
    fresh.load_state_dict(own)
    return replace(
        trunk,
        network=fresh.eval(),
        classes=painted.classes,
        outputs=tuple(range(count)),
        depths=None,
    )


def _with_classes(settings: dict[str, Any], count: int) -> dict[str, Any]:
    """Change the number of outputs, of members too."""
    changed = settings | {"classes": count}
    if "member" in settings:
        changed["settings"] = settings["settings"] | {"classes": count}
    return changed


def replayed(sample: Sample, model: Model, *, objects: bool) -> Sample:
    """Bring an image that was learned from before into the form of a painted one.

    Parameters
    ----------
    sample : Sample
        Its classes are outputs of the model.
    model : Model
        What learns.
    objects : bool
        Whether what was painted tells objects apart.
    """
    classes = sample.classes
    if not objects:
        sample = replace(sample, instances=None)
        belongs = torch.full((VOID + 1,), VOID, dtype=torch.uint8)
        belongs[: len(model.outputs)] = torch.tensor(model.outputs, dtype=torch.uint8)
        classes = belongs[classes.long()]
    if isinstance(model.config, MaskRCNNConfig):
        return replace(sample, classes=classes)
    nothing = torch.zeros(len(model.classes), *classes.shape)
    return replace(sample, image=torch.cat([sample.image, nothing]), classes=classes)


def stamped(
    model: Model,
    base: Model,
    painted: Painted,
    verdict: Verdict,
    *,
    settings: Mapping[str, Any],
    seconds: float,
    device: str,
) -> Model:
    """Say in a model's provenance what it learned from, and how well it does."""
    return replace(
        model,
        provenance={
            "data": f"strokes on {len(painted.planes)} planes, from {base.name}",
            "fine_tuned": {
                "base": base.name,
                "strokes": painted.strokes(),
                "pixels": painted.pixels(),
                "planes": len(painted.planes),
                "complete": painted.complete,
                "settings": dict(settings),
                "score_before": round(verdict.before, 4),
                "score_after": round(verdict.after, 4),
                "held_out_strokes": verdict.strokes,
                "seconds": round(seconds, 3),
                "device": device,
            },
            "started_from": dict(base.provenance) or None,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "napari-fovea": version("napari-fovea"),
            },
        },
    )
