"""A child that works for a process which is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ahernet.child_process import worker_pool
from ahernet.errors import UserError

PARENT = """
import signal, time
from os import getpid
from ahernet.child_process import worker_pool

def stop_as_training_does(word):
    def interrupt(number, frame):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    print(word, end="", flush=True)
    time.sleep(300)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests were started in the background
    with worker_pool(1) as pool:
        print(pool.submit(getpid).result(), flush=True)
        tasks = [pool.submit(stop_as_training_does, word) for word in ("begun\\n", "", "")]
        tasks[0].result()
"""


def _runs(process):
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):  # it may end while its status is read
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_worker_ends_when_its_parent_is_killed_or_interrupted(tmp_path, number):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        worker = int(parent.stdout.readline())
        assert parent.stdout.readline() == "begun\n"
        assert _runs(worker)
        parent.send_signal(number)
        patience = time.monotonic() + 30
        while _runs(worker) and time.monotonic() < patience:
            time.sleep(0.05)
        outlived = _runs(worker)
        parent.kill()
    assert not outlived


def test_a_worker_that_is_killed_is_an_error_in_one_line():
    with pytest.raises(UserError, match="was killed"), worker_pool(1) as pool:
        pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL).result()
