"""Archive localization on Ray: one shard a task, on as many machines as the cluster has.

Ray places the work and repeats what a lost machine or process left. What is finished is decided by the names in the
folder alone, as everywhere, so that results do not depend on the engine, and a driver that dies loses nothing. All
machines must see the archive, the checkpoint and the folder under the same paths. Without RAY_ADDRESS in the
environment a cluster is started on this machine.
"""

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from ahernet.errors import UserError
from ahernet.inference.shards import Shard, ShardedJob, make_ready, work_on

QUIET = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}


def on_ray(job: ShardedJob, shards: Sequence[Shard], device: str, processes: int, bar: "tqdm[Any]") -> None:
    """Let actors of a Ray cluster share the shards; see `shards.Engine`.

    With "auto" and a cluster that has GPUs every actor takes one.

    Raises:
        UserError: Ray is not installed; as `localize`.
    """
    ray = _import_ray()
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(**QUIET)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        gpus = 1 if device == "auto" and ray.cluster_resources().get("GPU") else 0
        # One block a shard: fewer would tie shards together, which then are lost together.
        numbers = ray.data.from_items(
            [{"place": place} for place in range(len(shards))], override_num_blocks=len(shards)
        )
        finished = numbers.map_batches(
            ShardWorker,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=processes),  # which starts lost actors and their tasks anew
            num_cpus=1,
            num_gpus=gpus,
            fn_constructor_args=(job, list(shards), device),
        )
        for row in finished.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            shard = shards[row["place"]]
            bar.update(shard.last - shard.first)
    finally:
        if started_here:
            ray.shutdown()


class ShardWorker:
    """An actor that holds the network and completes one shard after the other."""

    def __init__(self, job: ShardedJob, shards: Sequence[Shard], device: str) -> None:
        self._job, self._shards = job, shards
        self._ready = make_ready(job, device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Complete the shards at `place`; a mistake of the user comes back as text."""
        places = [int(place) for place in batch["place"]]
        error = ""
        try:
            with tqdm(disable=True) as bar:
                work_on(self._job, self._ready, [self._shards[place] for place in places], bar)
        except UserError as mistake:
            error = str(mistake)
        return {"place": places, "error": [error] * len(places)}


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("the engine ray needs Ray: pip install 'ahernet[ray]'") from error
    return ray
