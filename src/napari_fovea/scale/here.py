"""Blocks one after another in this process, while others are read and written."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from napari_fovea.errors import sentence
from napari_fovea.scale.job import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    import numpy as np
    from numpy.typing import NDArray

    from napari_fovea.scale.job import Job
    from napari_fovea.scale.plan import Block
    from napari_fovea.scale.result import Finished, Segmenting, Tally


def blocks_here(
    job: Job,
    todo: set[int],
    tally: Tally,
    *,
    near: Callable[[], tuple[float, ...] | None],
    cancelled: Callable[[], bool],
) -> Generator[Segmenting | Finished, None, None]:
    """Segment blocks in this process.

    While one is computed, the next is read and the last is written: there are never
    more than three in memory.

    Parameters
    ----------
    job : Job
        The image and how to segment it.
    todo : set of int
        Indices of the blocks.
    tally : Tally
        Counts them.
    near : callable
        Asked before each block which place to be near to.
    cancelled : callable
        Where it says yes, what is finished is kept.

    Raises
    ------
    OSError
        If a block cannot be written.
    """
    left = set(todo)
    with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(1) as writing:

        def following() -> tuple[Block, Future[NDArray[np.generic]]] | None:
            if not left:
                return None
            block = job.plan[job.plan.nearest(left, near())]
            left.remove(block.index)
            return block, reading.submit(job.read, block)

        ahead, written = following(), None
        while ahead is not None and not cancelled():
            block, pixels = ahead
            ahead = following()
            failure = found = None
            try:
                run = job.segment(block, pixels.result(), cancelled)
                while True:
                    yield tally.segmenting(block, next(run))
            except StopIteration as end:
                found = end.value
            except Exception as error:  # whatever it is, the rest goes on
                failure = Failure(block, sentence(error))
            del pixels
            if written is not None:
                written[1].result()
                yield tally.finished(written[0])
                written = None
            if failure is not None:
                yield tally.finished(block, failure)
            elif found is not None:
                written = block, writing.submit(job.write, found)
            del found
        if written is not None:
            written[1].result()
            yield tally.finished(written[0])
