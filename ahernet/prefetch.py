"""Reading ahead: the next batches are read by a thread while the current one is computed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")


@contextmanager
def read_ahead(read: Callable[[K], T], keys: Iterable[K], ahead: int = 2) -> Iterator[Iterator[tuple[K, T]]]:
    """Give an iterator over `(key, read(key))` in order that reads up to `ahead` keys beyond the current one.

    One thread reads. Leaving the context, also by an exception, waits for the read in progress and drops
    the others; no thread outlives it. An exception in `read` is raised where its key is due.

    Raises:
        ValueError: `ahead` is below 1.
    """
    if ahead < 1:
        raise ValueError(f"ahead: expected at least 1, got {ahead}")
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahernet-read") as pool:
        try:
            yield _results(pool, read, iter(keys), ahead)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _results(pool: ThreadPoolExecutor, read: Callable[[K], T], keys: Iterator[K], ahead: int) -> Iterator[tuple[K, T]]:
    pending: deque[tuple[K, Future[T]]] = deque()
    pending.extend((key, pool.submit(read, key)) for key in islice(keys, ahead))
    while pending:
        key, result = pending.popleft()
        value = result.result()
        pending.extend((key, pool.submit(read, key)) for key in islice(keys, 1))
        yield key, value
