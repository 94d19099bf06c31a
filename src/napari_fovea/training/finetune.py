"""Fine-tuning on what a user paints, for scripts, command line and dock alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_fovea.errors import TrainingError
from napari_fovea.training.learned import MODES, Learning, Mode, Tuned
from napari_fovea.training.painted import Annotation, read_painted
from napari_fovea.training.tuner import SECONDS, Tuner

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from napari_fovea.models import Model
    from napari_fovea.training.samples import Sample


def fine_tune(
    annotations: Sequence[Annotation],
    model: Model,
    *,
    mode: Mode = "instant",
    names: Mapping[int, str] | None = None,
    seconds: float = SECONDS,
    name: str | None = None,
    device: str = "auto",
    precision: str = "float32",
    seed: int = 0,
    replay: Sequence[Sample] = (),
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[Learning, None, Tuned]:
    """Let a model learn from what was painted.

    Parameters
    ----------
    annotations : sequence of Annotation
        Images and what was painted on them.
    model : Model
        What to start from; it is left alone.
    mode : str
        ``"instant"`` fits how the network's features are read; ``"thorough"`` trains
        all of it.
    names : mapping of int to str, optional
        What each painted number means; see `read_painted`.
    seconds : float
        What thorough learning may take.
    name : str, optional
        Of the new model; by default the old one's.
    device : str
        ``"auto"`` or a torch device.
    precision : str
        Of thorough learning; a name of `processes.PRECISIONS`.
    seed : int
        Of what is drawn at random.
    replay : sequence of Sample
        Images that the model learned from, to be shown again now and then.
    cancelled : callable
        Asked often; where it says yes, the best model so far is returned.

    Yields
    ------
    Learning

    Returns
    -------
    Tuned
        Its verdict tells whether it is better than what it started from.

    Raises
    ------
    TrainingError
        If nothing can be learned from the annotations, or the model cannot learn so.
    """
    if mode not in MODES:
        raise TrainingError(
            f"There is no mode {mode!r}; expected {' or '.join(map(repr, MODES))}."
        )
    tuner = Tuner(model, device=device)
    painted = read_painted(
        annotations, model, names=names, scales=tuner.scales, cancelled=cancelled
    )
    if mode == "instant":
        run = tuner.instant(painted, name=name, cancelled=cancelled)
    else:
        run = tuner.thorough(
            painted,
            seconds=seconds,
            name=name,
            precision=precision,
            seed=seed,
            replay=replay,
            cancelled=cancelled,
        )
    return (yield from run)
