"""Models of different systems as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from napari_fovea.errors import ModelError
from napari_fovea.models.model import Model
from napari_fovea.networks import (
    MOST,
    MaskRCNNConfig,
    Member,
    MixedEnsemble,
    MixedEnsembleConfig,
    name_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


def joined(models: Sequence[Model], *, name: str) -> Model:
    r"""Make one model of several, of any systems.

    Each member sees the image at its own scale, and moves its focus over it, looks at
    all of it or finds objects as it does alone. The map is the mean of their class
    probabilities,

    .. math:: p(x) = \frac{1}{M} \sum_m p_m(x) ,

    its uncertainty what they disagree about,

    .. math:: I(x) = H(p(x)) - \frac{1}{M} \sum_m H(p_m(x)) ,

    in nats: 0 where all say the same, however unsure. Touching objects are told apart
    by the mean of what members tell of depths.

    Parameters
    ----------
    models : sequence of Model
        Two or more, for the same classes and channels.
    name : str
        Name of what is made.

    Returns
    -------
    Model
        It shares the weights of its members, and is saved to one file with them.

    Raises
    ------
    ModelError
        If they do not fit together.
    """
    if not 2 <= len(models) <= MOST:
        raise ModelError(
            f"An ensemble was asked for of {len(models)} models; expected 2 to {MOST}: "
            "choose others."
        )
    if len({id(model.network) for model in models}) < len(models):
        raise ModelError(
            f"Of {', '.join(m.name for m in models)} two are the same network, which "
            "has one opinion; expected different ones: leave one out."
        )
    first = models[0]
    for model in models:
        if model.members:
            raise ModelError(
                f"Model {model.name!r} is an ensemble itself; expected its members: "
                "give those."
            )
        for what in ("classes", "channels", "normalisation", "pixel_size"):
            if getattr(model, what) != getattr(first, what):
                raise ModelError(
                    f"Models {first.name!r} and {model.name!r} differ in {what} "
                    f"({getattr(first, what)} and {getattr(model, what)}); expected "
                    "the same: choose others."
                )
        if (model.object_diameter is None) != (first.object_diameter is None):
            raise ModelError(
                f"Of models {first.name!r} and {model.name!r} one knows the size of "
                "its objects, the other does not; expected both or neither: choose "
                "others."
            )
    count = len(first.classes)
    deep = count == 2 and any(
        m.depths is not None or isinstance(m.config, MaskRCNNConfig) for m in models
    )
    config = MixedEnsembleConfig(
        channels=first.channels,
        classes=3 if deep else count,
        members=tuple(
            Member(
                name=m.name,
                network=name_of(m.network),
                settings=m.config.model_dump(),
                outputs=m.outputs,
                depths=m.depths,
                object_diameter=m.object_diameter,
                policy=m.scan.get("policy"),
                tile=m.scan.get("tile"),
                score=m.scan.get("score"),
            )
            for m in models
        ),
    )
    with torch.device("meta"):  # its first weights would be thrown away
        network = MixedEnsemble(config)
    network.members = nn.ModuleList(m.network for m in models)
    sizes = [m.object_diameter for m in models if m.object_diameter is not None]
    auto = any(m.scan.get("diameter") == "auto" for m in models)
    return Model(
        name=name,
        network=network.eval(),
        classes=first.classes,
        # The inside of objects is divided between its edge and its core: any mean
        # depth is a mixture of these.
        outputs=(0, 1, 1) if deep else tuple(range(count)),
        depths=(0.0, 0.0, 1.0) if deep else None,
        normalisation=first.normalisation,
        # No member is shown more than what is kept for the one that sees most.
        object_diameter=max(sizes, default=None),
        pixel_size=first.pixel_size,
        scan={"diameter": "auto"} if auto else {},
        provenance=_provenance(models),
    )


def _provenance(models: Sequence[Model]) -> dict[str, Any]:
    """Tell the members, and what all of them were trained on, if it is the same."""
    told: dict[str, Any] = {"members": [m.name for m in models]}
    data = {m.provenance.get("data") for m in models}
    only = data.pop() if len(data) == 1 else None
    return told | ({"data": only} if only is not None else {})
