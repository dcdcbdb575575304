"""Processes that work for another one, and must not outlive it."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process

from ahernet.errors import UserError


@contextmanager
def worker_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that ends with the block: left by an error or an interruption, with what it is doing.

    A pool by itself would first finish everything that was handed in.

    Raises:
        UserError: one of the processes was killed.
    """
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=end_with_parent)
    try:
        yield pool
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in active_children():
            # Not terminated: training takes that for a request to stop, and the worker would go on with the next task.
            worker.kill()
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a process that worked for this one was killed (out of memory?); what it had finished is kept, and the "
                "same command goes on"
            ) from error
        raise
    finally:
        pool.shutdown()


def end_with_parent() -> None:
    """Let this process end as soon as the one that started it has, however that ended.

    To be called in the child. What a killed parent leaves would work on, beside the one that is started in its place.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
