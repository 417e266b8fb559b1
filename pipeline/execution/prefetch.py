"""Prefetching in threads. Image decoders release Python's global lock, so threads scale, and no pixels cross between processes."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(function: Callable[[T], R], items: Iterable[T], *, threads: int, depth: int | None = None) -> Generator[R, None, None]:
    """Yield ``function(item)`` for each item, in order, computed up to ``depth`` items ahead of the consumer.

    Args:
        function: Called in a thread.
        items: Its arguments, read lazily.
        threads: Number of threads; 0 runs everything in the consumer's thread.
        depth: How many items may be computed in advance, by default 2 * threads.
    """
    if threads <= 0:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="capstream-ahead")
    try:
        remaining = iter(items)
        pending: deque[Future[R]] = deque(pool.submit(function, item) for item in itertools.islice(remaining, depth or 2 * threads))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in itertools.islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
