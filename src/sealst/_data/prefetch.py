"""Overlap reading with computing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Yield the items of an iterable that is drawn ahead, in order, by one background thread.

    Decoding and resizing release the interpreter lock, so the encoder works while the next crops are read.
    """
    source = iter(items)
    end = object()

    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = deque(pool.submit(next, source, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, source, end))
                yield item  # type: ignore[misc]
        finally:
            for future in waiting:
                future.cancel()
