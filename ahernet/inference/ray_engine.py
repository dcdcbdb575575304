"""Archive localization on Ray: one shard a task, on as many machines as the cluster has.

Ray places the work and repeats what a lost machine or process left. What is finished is decided by the names in the
folder alone, as everywhere, so that results do not depend on the engine, and a driver that dies loses nothing. All
machines must see the archive, the checkpoint and the folder under the same paths.
"""

from collections.abc import Sequence
from contextlib import closing

from ahernet.inference.shards import Shard, ShardedJob, make_ready, work_on
from ahernet.progress import ProgressBar
from ahernet.ray_tasks import Do, run_on_ray


def on_ray(job: ShardedJob, shards: Sequence[Shard], device: str, processes: int, bar: ProgressBar) -> None:
    """Let actors of a Ray cluster share the shards; see `shards.Engine` and `run_on_ray`.

    Raises:
        UserError: as `localize` and `run_on_ray`.
    """
    arguments = (job, list(shards), device)
    with closing(run_on_ray(shard_worker, arguments, len(shards), min(processes, len(shards)), device)) as finished:
        for number in finished:
            bar.update(shards[number].last - shards[number].first)


def shard_worker(job: ShardedJob, shards: Sequence[Shard], device: str) -> Do:
    """Return what completes the shard of a number, with a network that it holds."""
    ready = make_ready(job, device)

    def complete(number: int) -> None:
        with ProgressBar(disable=True) as bar:
            work_on(job, ready, [shards[number]], bar)

    return complete
