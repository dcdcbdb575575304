"""Numbered tasks on a Ray cluster: actors that each hold something heavy and do one task after the other.

Without RAY_ADDRESS in the environment a cluster is started on this machine, and ended with the tasks. Ray starts lost
actors anew and repeats their tasks, so that a task must be one that may be done twice. One that takes its actor with it
every time, for lack of memory for instance, ends the run.
"""

from collections.abc import Callable, Generator
from typing import Any

from ahernet.errors import UserError

# A machine may be lost, and the next one as well; a task that loses so many is to blame itself.
RETRIES = 5
DEVICES = ("auto", "cpu", "cuda")
QUIET = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}

Do = Callable[[int], None]


def run_on_ray(
    make: Callable[..., Do], arguments: tuple[Any, ...], tasks: int, actors: int, device: str
) -> Generator[int, None, None]:
    """Do tasks 0, 1, ... on a cluster and yield the number of each that is done, in any order.

    Args:
        make: called with `arguments` in every actor; what it returns does the task whose number it is given.
        arguments: of `make`, sent to the actors.
        tasks: how many there are.
        actors: how many work at a time.
        device: auto, cpu or cuda; but for cpu every actor takes a GPU, if the cluster has any.

    Raises:
        UserError: another device, Ray is not installed, a task raised one, or a task lost its actor more often than
            `RETRIES`.
    """
    if device not in DEVICES:
        raise UserError(f"engine ray: device: expected {', '.join(DEVICES)}, for the cluster chooses; got {device!r}")
    ray = _import_ray()
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(**QUIET)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        # One block a task: fewer would tie tasks together, which then are lost together.
        numbers = ray.data.from_items([{"number": number} for number in range(tasks)], override_num_blocks=tasks)
        finished = numbers.map_batches(
            _Actor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
            num_gpus=1 if device != "cpu" and ray.cluster_resources().get("GPU") else 0,
            fn_constructor_args=(make, arguments),
            max_task_retries=RETRIES,
        )
        done = set()
        try:
            for row in finished.iter_rows():
                if row["mistake"]:
                    raise UserError(row["mistake"])
                done.add(row["number"])
                yield row["number"]
        except _losses(ray) as error:
            raise UserError(
                f"engine ray: a process died {RETRIES + 1} times at the same task, for lack of memory perhaps; "
                f"{tasks - len(done):,} of {tasks:,} tasks are not done, it is one of these; run again with more memory"
            ) from error
    finally:
        if started_here:
            ray.shutdown()


def _losses(ray: Any) -> tuple[type[BaseException], ...]:
    """What Ray raises when the process of a task is lost once too often."""
    names = ("RayActorError", "OutOfMemoryError", "NodeDiedError", "WorkerCrashedError")
    return tuple(getattr(ray.exceptions, name) for name in names)


class _Actor:
    def __init__(self, make: Callable[..., Do], arguments: tuple[Any, ...]) -> None:
        self._mistake = ""
        try:
            self._do = make(*arguments)
        except UserError as mistake:
            self._mistake = str(mistake)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do the tasks of a batch; a mistake of the user comes back as text, for Ray would repeat a failed task."""
        mistakes = []
        for number in batch["number"]:
            try:
                if not self._mistake:
                    self._do(int(number))
                mistakes.append(self._mistake)
            except UserError as mistake:
                mistakes.append(str(mistake))
        return {"number": batch["number"], "mistake": mistakes}


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("engine ray: needs Ray; install it with pip install 'ahernet[ray]'") from error
    return ray
