"""Work that runs ahead in threads. Decoding releases Python's lock, so threads scale here, and no pixel crosses a process."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(function: Callable[[T], R], items: Iterable[T], *, threads: int, depth: int | None = None) -> Generator[R, None, None]:
    """Yield ``function(item)`` in the order of ``items``, up to ``depth`` items ahead of the consumer.

    Args:
        threads: 0 runs everything in the consumer's thread.
        depth: By default 2 * threads.
    """
    if threads <= 0:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="capstream-ahead")
    try:
        remaining = iter(items)
        waiting: deque[Future[R]] = deque(pool.submit(function, item) for item in itertools.islice(remaining, depth or 2 * threads))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
