"""Where the steps of slides run: in this process, or on the workers of a Dask cluster."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple, TypeAlias

from sealst._core.cores import n_cores
from sealst._errors import DataError
from sealst._logging import logger
from sealst.tl._slides.job import Job
from sealst.tl._slides.manifest import Slide
from sealst.tl._slides.work import FINISH, Task, work

#: slides that are begun before every worker has something to do
_AHEAD = 2
#: seconds that workers have to stop
_PATIENCE = 30


class Outcome(NamedTuple):
    """What came of a task: a result, or an error."""

    task: Task
    result: dict[str, Any] | None = None
    error: Exception | None = None


class Here:
    """The process itself: one task after the other, a slide is finished before the next is begun."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._queue: deque[tuple[Task, Slide, str]] = deque()

    def submit(self, task: Task, slide: Slide, digest: str) -> None:
        """Queue a task."""
        self._queue.append((task, slide, digest))

    def next(self) -> Outcome:
        """Run the next task."""
        task, slide, digest = self._queue.popleft()
        try:
            return Outcome(task, work(task.step, slide, self._job, task.start, digest))
        except Exception as error:  # noqa: BLE001  a broken slide must not stop the others
            return Outcome(task, error=error)

    def drop(self, slide: int) -> None:
        """Take a slide's tasks from the queue."""
        self._queue = deque(item for item in self._queue if item[0].slide != slide)

    def has_room(self) -> bool:
        """Whether nothing is queued."""
        return not self._queue


class OnCluster:
    """Workers of a Dask cluster, which may come and go."""

    def __init__(self, client: Any, job: Job) -> None:
        from distributed import as_completed

        self._client, self._job = client, job
        self._running: dict[Any, Task] = {}
        self._ended = as_completed(loop=client.loop)
        self._number = 0

    def submit(self, task: Task, slide: Slide, digest: str) -> None:
        """Send a task; tasks of earlier slides go first, so that few slides are open at a time."""
        self._number += 1
        future = self._client.submit(
            work, task.step, slide, self._job, task.start, digest,
            key=f"{slide.name}-{task.step}-{task.start}-{os.getpid()}-{self._number}",
            pure=False,
            priority=-task.slide + (0.5 if task.step == FINISH else 0.0),
        )  # fmt: skip
        self._running[future] = task
        self._ended.add(future)

    def next(self) -> Outcome:
        """Wait for a task of any worker."""
        if not self._client.nthreads():
            logger.info("Waiting for workers of %s.", self._client.scheduler.address)
        future = next(self._ended)
        task = self._running.pop(future)
        try:
            return Outcome(task, future.result())
        except Exception as error:  # noqa: BLE001  also a worker that died
            return Outcome(task, error=error)

    def drop(self, slide: int) -> None:
        """Cancel a slide's tasks; they come back as cancelled."""
        self._client.cancel([future for future, task in self._running.items() if task.slide == slide])

    def has_room(self) -> bool:
        """Whether workers could run out of tasks."""
        return len(self._running) < max(1, sum(self._client.nthreads().values())) * _AHEAD


Workers: TypeAlias = Here | OnCluster


@contextmanager
def workers_for(job: Job, *, n_workers: int, scheduler: Any) -> Iterator[Workers]:
    """Workers as asked for; a cluster that is started here ends with the ``with`` block."""
    if scheduler is None and not n_workers:
        yield Here(job)
        return
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise DataError(
            '`n_workers` and `scheduler` need Dask\'s distributed scheduler: pip install "sealst[cluster]".'
        ) from error
    with ExitStack() as stack:
        if scheduler is None:
            scheduler = stack.enter_context(local_cluster(LocalCluster, n_workers))
        client = scheduler
        if not isinstance(scheduler, Client):
            try:
                client = stack.enter_context(Client(scheduler, set_as_default=False))
            except (OSError, ValueError, TimeoutError) as error:
                raise DataError(
                    f"No Dask scheduler answers at {scheduler!r}: {error}. Is its address right?"
                ) from error
        yield OnCluster(client, job)


def threads_of_one(n_workers: int) -> int:
    """Threads of each of some processes that share this machine's cores."""
    return max(1, n_cores() // n_workers)


@contextmanager
def local_cluster(cluster: Any, n_workers: int) -> Iterator[Any]:
    """Inside a ``with`` block, a cluster of processes on this machine that share its cores."""
    threads = str(threads_of_one(n_workers))
    # Dask gives a worker one thread for BLAS and OpenMP unless told otherwise. Memory is not limited: a limit stops a
    # worker that is well, since files that are mapped count.
    env = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    started = cluster(
        n_workers=n_workers, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0, env=env
    )
    try:
        yield started
    finally:
        # A worker that is just starting may not stop in time; what was computed is on disk.
        with suppress(TimeoutError, OSError):
            started.close(timeout=_PATIENCE)
