"""Cores of this machine, and how many threads work on them; no torch, which reading of pictures does without."""

from __future__ import annotations

import os

from sealst._settings import settings


def n_cores() -> int:
    """Logical cores that this process may run on.

    Those of its affinity (of ``taskset`` or of a batch system's allocation) where the system has one, else all of the
    machine. Quotas of a container, which limit time and not cores, do not count.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def n_threads() -> int:
    """Threads that decode and resize: ``settings.n_jobs``, or `n_cores` (all with -1, else at most 8)."""
    if settings.n_jobs is not None and settings.n_jobs > 0:
        return settings.n_jobs
    return n_cores() if settings.n_jobs == -1 else min(8, n_cores())
