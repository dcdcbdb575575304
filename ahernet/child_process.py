"""Processes that work for another one, and must not outlive it."""

import os
import threading
from multiprocessing import parent_process


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
