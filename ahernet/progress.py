"""Progress of long work: a bar on standard error, and events in the log where one is open."""

import threading
import time
from typing import Any

from tqdm import tqdm

from ahernet.event_log import log_event

LOG_SECONDS = 10.0  # between two events of one bar


class ProgressBar(tqdm):  # type: ignore[misc]
    """A bar of tqdm whose progress is logged as well: at its beginning, every ten seconds, and at its end.

    Takes what tqdm takes. With `disable` nothing is shown or logged.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._began = time.monotonic()
        super().__init__(*arguments, **options)
        self._log_progress()

    def update(self, n: float | None = 1) -> bool | None:
        """Count `n` more as done."""
        shown: bool | None = super().update(n)
        if time.monotonic() - self._logged >= LOG_SECONDS:
            self._log_progress()
        return shown

    def close(self) -> None:
        """Say where it ended; closing twice is fine."""
        try:
            self._log_progress()
        finally:
            super().close()

    def _log_progress(self) -> None:
        self._logged = time.monotonic()
        if getattr(self, "disable", True):  # or closed
            return
        log_event(
            "progress",
            task=self.desc.removesuffix(": "),
            done=self.n,
            total=self.total,
            unit=self.unit,
            seconds=round(self._logged - self._began, 3),
            note=self.postfix or "",
        )


# That of tqdm is shared between processes after a fork: one that is killed while it holds the lock stops all others.
ProgressBar.set_lock(threading.RLock())
