"""The one entry to segmenting images larger than memory."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from napari_fovea.errors import StoreError
from napari_fovea.models import Model
from napari_fovea.networks import RetinaConfig
from napari_fovea.scale import joining
from napari_fovea.scale.here import blocks_here
from napari_fovea.scale.prepare import check_apart, prepare
from napari_fovea.scale.result import Event, Joining, LargeResult, Opened, Tally
from napari_fovea.scale.source import Source, open_source
from napari_fovea.scale.store import look
from napari_fovea.scale.work import held

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Iterator

    from napari_fovea.device import Backend
    from napari_fovea.retina import Fusion, Policy
    from napari_fovea.scale.cluster import Crew
    from napari_fovea.scale.job import Job
    from napari_fovea.scale.store import Store

    Place = tuple[float, ...] | None

_BLOCKS = 0.9  # share of the blocks in the whole; the rest is joining
_NUMBERING = 0.3  # share of finding out in joining


def segment_large(
    source: Any,
    model: Model | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    axes: str | None = None,
    level: int | str = "auto",
    diameter: float | Literal["auto"] | None = None,
    pixel_size: float | None = None,
    policy: str | Policy | None = None,
    fusion: str | Fusion | None = None,
    budget: int | None = None,
    device: str | Backend = "auto",
    chunk: int | None = None,
    probabilities: bool = False,
    near: Place | Callable[[], Place] = None,
    overwrite: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[Event, None, LargeResult]:
    """Segment an image that need not fit into memory, reporting as it goes.

    The image is read and segmented in blocks, whose results are written to an
    OME-Zarr image as they come. Blocks see a halo around what they write, and objects
    that lie across borders of blocks are joined in the end. A run that was broken off
    goes on where it was when it is started again with the same arguments.

    Parameters
    ----------
    source : path-like, array, list of arrays or Source
        What `open_source` takes: a zarr array, an OME-Zarr image, a TIFF, an array
        of numpy, zarr or dask, or the levels of a pyramid.
    model : Model, str or path-like
        A model, its name, or its file.
    output : path-like
        Folder to write, such as ``"out.zarr"``.
    axes : str, optional
        What each axis is, such as ``"CYX"``; by default from the metadata, or
        guessed.
    level : int or ``"auto"``
        Which level of a pyramid is segmented. By default the coarsest that still
        shows objects as large as the model wants them, if a diameter or pixel sizes
        tell, else the finest.
    diameter : float, optional
        Typical diameter of the objects in pixels of the finest level; ``"auto"`` lets
        the model estimate it from a part of it, see `segment`.
    pixel_size : float, optional
        Size of a pixel of the finest level in micrometres; by default from the
        metadata.
    policy, fusion, device
        See `segment`.
    budget : int, optional
        Most fixations per plane, shared among blocks by their areas.
    chunk : int, optional
        Side of a block in pixels, at most; by default 2048, or less where whole tiles
        of the model fit better.
    probabilities : bool
        Whether class probabilities are kept too, as 16-bit floats.
    near : tuple of float or callable, optional
        Blocks near to this row and column, or plane, row and column, come first; a
        callable is asked before each block.
    overwrite : bool
        Whether another result of this program may be replaced.
    workers : int, optional
        Processes of this machine that share the work.
    scheduler : str, optional
        Address of a dask scheduler whose workers do the work; they have to see the
        files under the same names.
    cancelled : callable
        Asked often; where it says yes, finished blocks are kept and the rest is left.

    Yields
    ------
    Opened, then Segmenting and Finished, then Joining

    Returns
    -------
    LargeResult

    Raises
    ------
    FoveaError
        If image, model, settings, output or workers cannot be used, or writing
        fails. What was finished is kept.
    """
    path = Path(output)
    if not isinstance(model, Model):
        model = Model.load(model)
    own = isinstance(source, Source)  # and stays open
    with nullcontext(source) if own else open_source(source, axes=axes) as opened:
        check_apart(opened, path)
        with _telling(path):
            left = look(path)
        left = None if overwrite else left
        run = prepare(
            opened,
            model,
            level=level,
            diameter=diameter,
            pixel_size=pixel_size,
            policy=policy,
            fusion=fusion,
            budget=budget,
            device=device,
            workers=workers or 1,
            chunk=chunk,
            left=left,
            probabilities=probabilities,
        )
        total = len(run.plan)
        if not callable(near):
            run.plan.nearest((0,), near)  # that it is a place
        with ExitStack() as stack:
            crew = None
            if not (left or {}).get("complete"):
                # All that may be refused comes before what an earlier run has left
                # is touched.
                crew = stack.enter_context(_crew(opened, workers, scheduler))
                with _telling(path):
                    stack.enter_context(held(path))
            with _telling(path):
                job, told = run.open(path, overwrite=overwrite)
            if told["complete"]:
                yield Opened(path, run.shape, total, total, 1.0, run.note)
                return _result(path, told)
            store = job.store
            finished = store.work.finished()
            tally = Tally(total, len(finished), _BLOCKS)
            yield Opened(
                path, run.shape, total, len(finished), tally.fraction, run.note
            )
            with _telling(path, tally):
                yield from _blocks(
                    job,
                    set(range(total)) - finished,
                    tally,
                    crew,
                    near=near if callable(near) else lambda: near,
                    cancelled=cancelled,
                )
                objects = None
                if tally.done + len(tally.failures) == total:
                    objects = yield from _joined(store, cancelled)
                record = _record(
                    store,
                    run.provenance,
                    tally,
                    objects,
                    focused=isinstance(model.config, RetinaConfig),
                    job=job,
                )
                if crew is not None:
                    record["provenance"]["workers"] = crew.facts()
                store.tell(record)
                if record["complete"]:
                    store.clear()
            return _result(path, record, tally)


@contextmanager
def _crew(
    source: Source, workers: int | None, scheduler: str | None
) -> Iterator[Crew | None]:
    """Gather workers, if there are to be any."""
    if workers is None and scheduler is None:
        yield None
        return
    from napari_fovea.scale.cluster import gathered

    with gathered(source, workers=workers, scheduler=scheduler) as crew:
        yield crew


def _blocks(
    job: Job, todo: set[int], tally: Tally, crew: Crew | None, **how: Any
) -> Generator[Event, None, None]:
    """Segment blocks here, or wherever they are to be."""
    if crew is None:
        return blocks_here(job, todo, tally, **how)
    return crew.blocks(job, todo, tally, **how)


def _joined(
    store: Store, cancelled: Callable[[], bool]
) -> Generator[Joining, None, int | None]:
    """Join objects across borders; tell their number, or None if it was cancelled."""
    share = (1 - _BLOCKS) * _NUMBERING
    finding = joining.number(store.work)
    try:
        while True:
            yield Joining(_BLOCKS + share * next(finding))
            if cancelled():
                return None
    except StopIteration as end:
        numbering: joining.Numbering = end.value
    for part in joining.rewrite(store, numbering):
        yield Joining(1 - (1 - _BLOCKS - share) * (1 - part))
        if cancelled() and part < 1:
            return None
    return numbering.count


def _record(
    store: Store,
    provenance: dict[str, Any],
    tally: Tally,
    objects: int | None,
    *,
    focused: bool,
    job: Job,
) -> dict[str, Any]:
    """Tell what the store is to say of the run, ready for JSON."""
    fixations, seconds, finished = 0, 0.0, store.work.finished()
    recovered: dict[str, None] = {}
    for index in finished:
        looks, took, steps = store.work.read(
            index, "fact_fixations", "fact_seconds", "fact_recovered"
        )
        fixations, seconds = fixations + int(looks), seconds + float(took)
        recovered |= dict.fromkeys(filter(None, str(steps).split("; ")))
    return {
        "shape": list(store.array("labels/classes").shape),
        "objects": objects,
        "complete": objects is not None and not tally.failures,
        "provenance": provenance
        | {
            "settings": provenance["settings"] | job.chosen,
            "limits": list(job.limits),
            "precision": job.settings.device.precision,
            "recovered": list(recovered),
            "fixations": fixations if focused else None,
            "cancelled": objects is None,
            "seconds": round(seconds, 3),
            "finished": len(finished),
            "failures": [f.facts() for f in tally.failures],
        },
    }


def _result(
    path: Path, record: dict[str, Any], tally: Tally | None = None
) -> LargeResult:
    provenance = record["provenance"]
    return LargeResult(
        path,
        tuple(record["shape"]),
        record["objects"],
        provenance["fixations"],
        tuple(tally.failures) if tally else (),
        provenance["cancelled"],
        provenance,
    )


@contextmanager
def _telling(path: Path, tally: Tally | None = None) -> Iterator[None]:
    """Say in one sentence that the result cannot be written."""
    try:
        yield
    except OSError as error:
        kept = f"{tally.done} of {tally.total} blocks are" if tally else "nothing is"
        raise StoreError(
            f"{path} cannot be written ({error.strerror or error}); {kept} kept: make "
            "room or check its permissions, and run this again."
        ) from error
