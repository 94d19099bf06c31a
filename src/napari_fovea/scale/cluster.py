"""Blocks on many processes or machines, through dask.

A worker loads the model once, reads its blocks and writes to the store by itself:
what comes back is only that a block is done. A block whose worker died is given to
another; that one writes the same into the same chunks.
"""

from __future__ import annotations

import logging
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from napari_fovea.errors import ClusterError, FoveaError, sentence
from napari_fovea.inference import complete
from napari_fovea.models import Model
from napari_fovea.scale.job import Failure, Job

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from napari_fovea.scale.plan import Block
    from napari_fovea.scale.result import Finished, Tally
    from napari_fovea.scale.source import Source

_PATIENCE = 10  # seconds for a scheduler and its first worker
_STARTING = 60  # seconds for workers of our own: a busy machine is slow to start them
_ATTEMPTS = 10  # deaths of workers over one block until it is left out
_AHEAD = 2  # blocks given to each thread of a worker, so that none has to wait
_MOST_SENT = 2**22  # bytes of a description of an image, which go with every block
_TICK = 0.5  # seconds between two looks at whether it was cancelled


@dataclass(frozen=True)
class Crew:
    """Workers that are there, ready for blocks; see `gathered`.

    Attributes
    ----------
    client : distributed.Client
        Connected to their scheduler.
    threads : int or None
        What each may use, if they are ours.
    """

    client: Any
    threads: int | None

    def facts(self) -> dict[str, Any]:
        """Tell of them in the provenance: sums are rounded by how many share them."""
        return {
            "scheduler": None if self.threads else str(self.client.scheduler.address),
            "threads_of_each": self.threads,
        }

    def blocks(
        self,
        job: Job,
        todo: set[int],
        tally: Tally,
        *,
        near: Callable[[], tuple[float, ...] | None],
        cancelled: Callable[[], bool],
    ) -> Generator[Finished, None, None]:
        """Segment blocks; see `blocks_here`.

        ``near`` is asked before a block is given to a worker.

        Raises
        ------
        ClusterError
            If workers are lost, or cannot do it.
        OSError
            If a block cannot be written.
        """
        import cloudpickle

        client = self.client
        file = job.store.work.path / "model.safetensors"
        if isinstance(job.model, Model):
            job.model.save(file)
        sent = replace(job, model=file.absolute(), path=job.path.absolute())
        packed, left = cloudpickle.dumps(sent), set(todo)
        running: dict[Any, Block] = {}
        try:
            while (left or running) and not cancelled():
                with _reached():
                    room = max(1, sum(client.nthreads().values())) * _AHEAD
                    while left and len(running) < room:
                        block = job.plan[job.plan.nearest(left, near())]
                        left.remove(block.index)
                        future = client.submit(
                            _segment_block,
                            packed,
                            block.index,
                            self.threads,
                            pure=False,
                        )
                        running[future] = block
                    done = _completed(client, list(running))
                for future in done:
                    block = running.pop(future)
                    yield tally.finished(block, _outcome(future, block))
        finally:
            with suppress(OSError):  # whoever is lost does nothing more
                client.cancel(list(running))


def _segment_block(packed: bytes, index: int, threads: int | None) -> str | None:
    """Segment one block in a worker; tell why it failed, if it did."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    job = _unpacked(packed)
    job.check()
    block = job.plan[index]
    try:
        found = complete(job.segment(block, job.read(block)))
    except Exception as error:  # whatever it is, the rest goes on
        return sentence(error)
    job.write(found)
    return None


@lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> Job:
    """Unpack a job once per worker, so that its model stays loaded."""
    import cloudpickle

    job = cloudpickle.loads(packed)
    assert isinstance(job, Job)
    return job


def _completed(client: Any, futures: list[Any]) -> set[Any]:
    from distributed import wait

    try:
        with client.as_current():
            done: set[Any] = wait(futures, _TICK, "FIRST_COMPLETED").done
    except TimeoutError:
        return set()
    return done


def _outcome(future: Any, block: Block) -> Failure | None:
    from distributed import KilledWorker

    if future.cancelled():
        raise _lost()
    try:
        why = future.result()
    except KilledWorker:
        return Failure(block, "Its workers died, one after another: is memory short?")
    except OSError:  # it cannot be written
        raise
    except FoveaError as error:
        raise ClusterError(
            "A worker does not find what this process finds: "
            f"{str(error).rstrip('.')}; expected image and output under the same names "
            "wherever workers are: mount them there, or use workers of this machine."
        ) from error
    except Exception as error:
        raise ClusterError(
            f"A worker cannot run napari-fovea ({type(error).__name__}: {error}); "
            "expected the version that is installed here: install it there."
        ) from error
    return Failure(block, why) if why else None


@contextmanager
def _reached() -> Iterator[None]:
    """Say in one sentence that the scheduler does not answer any more."""
    try:
        yield
    except (OSError, CancelledError) as error:
        raise _lost() from error


def _lost() -> ClusterError:
    return ClusterError(
        "The scheduler was lost; what was finished is kept: start it again, and run "
        "this again."
    )


@contextmanager
def gathered(
    source: Source, *, workers: int | None, scheduler: str | None
) -> Iterator[Crew]:
    """Gather workers for an image; nothing is written yet.

    Parameters
    ----------
    source : Source
        The image, which they have to open too.
    workers : int, optional
        Processes to start on this machine.
    scheduler : str, optional
        Address of a scheduler that is running, in place of these.

    Raises
    ------
    ClusterError
        If there are no such workers, or the image cannot be sent to them.
    """
    import torch

    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ClusterError(
            "Workers need the package distributed, which is not installed: install "
            "napari-fovea[cluster], or leave the workers out."
        ) from error
    _check_sent(source)
    both = (workers is None) == (scheduler is None)
    if both or (workers is not None and workers < 1):
        raise ClusterError(
            f"Workers are {workers} and the scheduler is {scheduler}; expected a "
            "number of processes of 1 or more, or an address, and not both: leave one "
            "out."
        )
    with ExitStack() as stack:
        threads = None
        settings = {
            "distributed.scheduler.allowed-failures": _ATTEMPTS,
            "logging.distributed": "critical",
            # A fixed threshold makes every large tensor a mapping of its own, whose
            # pages are faulted in anew.
            "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
        }
        stack.enter_context(dask.config.set(settings))
        stack.enter_context(_quiet())
        if workers is not None:
            # Cores that this process may use, or as many as it was told to.
            threads = max(1, torch.get_num_threads() // workers)
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=":0",  # any port that is free
                silence_logs=logging.CRITICAL,
                memory_limit=0,
            )
            target: Any = stack.enter_context(cluster)
        else:
            target = scheduler
        try:
            client = Client(target, timeout=_PATIENCE, set_as_default=False)
            stack.enter_context(client)
            patience = _STARTING if workers is not None else _PATIENCE
            client.wait_for_workers(1, timeout=patience)
        except (OSError, ValueError, TimeoutError) as error:
            raise ClusterError(
                f"There is no scheduler with workers at {scheduler}; expected one that "
                "is running, such as tcp://localhost:8786: start 'dask scheduler' and "
                "'dask worker', or use workers of this machine."
            ) from error
        yield Crew(client, threads)


def _check_sent(source: Source) -> None:
    """Raise ClusterError if an image cannot be sent to workers, or is too large."""
    import cloudpickle

    if not source.in_memory:
        try:
            size = len(cloudpickle.dumps(source))
        except Exception as error:  # whatever its makers did not foresee
            raise ClusterError(
                f"The image cannot be sent to workers ({type(error).__name__}); "
                "expected one that they can open: save it as zarr or TIFF, or leave "
                "the workers out."
            ) from error
    if source.in_memory or size > _MOST_SENT:
        raise ClusterError(
            "The image is an array in the memory of this process; expected one that "
            "workers can open too: save it as zarr or TIFF, or leave the workers out."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what distributed tells of workers that come and go."""
    names = ["distributed", *logging.root.manager.loggerDict]
    loggers = [logging.getLogger(n) for n in names if n.split(".")[0] == "distributed"]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
