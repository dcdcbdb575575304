"""The processes that train one network together, the ranks of a run: who reads what, and what they add up.

Every rank has all parameters and reads its part of every batch, whose size does not depend on their number. A mean
over the batch has one divisor for all, so that the losses and gradients of the ranks add up to those of one process.
"""

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ahernet.device import choose_device
from ahernet.errors import UserError

BUCKET_BYTES = 64 << 20  # of gradients that are added up by one call
MEETING_SECONDS = 600
MESSAGE_BYTES = 1000  # of an error that the other ranks are told
# What torchrun tells every process, and what other launchers have to.
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """The ranks of a run, seen by one of them; all call the same methods in the same order.

    Attributes:
        rank: number of this process.
        count: of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and shows progress."""
        return self.rank == 0

    def part(self, batch_size: int) -> slice:
        """Return which items of a batch this rank takes: in the order of the ranks, each one as many as another or one
        more.

        Raises:
            UserError: there are more ranks than items.
        """
        if batch_size < self.count:
            raise UserError(
                f"training.batch_size: expected at least {self.count}, one for each process, got {batch_size}"
            )
        return slice(self.rank * batch_size // self.count, (self.rank + 1) * batch_size // self.count)

    def sum(self, values: Tensor) -> Tensor:
        """Add up the tensors of all ranks, of one shape; no gradient goes through it.

        Raises:
            UserError: another rank has ended.
        """
        if self.count == 1:
            return values
        total = values.detach().clone(memory_format=torch.contiguous_format)
        self._add_up(total)
        return total

    def gather(self, rows: Tensor, batch_size: int) -> Tensor:
        """Return the rows (batch_size, ...) of a whole batch, of which each rank gives its part."""
        if self.count == 1:
            return rows
        # Sums with 0 are exact, and parts may differ in size.
        whole = rows.new_zeros((batch_size, *rows.shape[1:]))
        whole[self.part(batch_size)] = rows.detach()
        return self.sum(whole)

    def shares(self, numbers: Tensor) -> Tensor:
        """Return the factors that make means over this rank's `numbers` of elements its parts of the means over all."""
        return numbers.clamp(min=1) / self.sum(numbers).clamp(min=1)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Put the sum over the ranks in place of the gradients that there are.

        Not left to `DistributedDataParallel`: it hooks into one `backward` over all parameters, and here each step has
        its own, over some of them.
        """
        if self.count == 1:
            return
        for bucket in _buckets([parameter.grad for parameter in parameters if parameter.grad is not None]):
            total = torch.cat([gradient.flatten() for gradient in bucket])
            self._add_up(total)
            parts = torch.split(total, [gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [part.view_as(x) for part, x in zip(parts, bucket, strict=True)])

    def any(self, flag: bool) -> bool:
        """Return whether the flag of any rank is set."""
        return bool(self.sum(torch.tensor(int(flag))))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let what raises an error in one rank raise one in all, once all are through.

        Raises:
            UserError: this rank is fine and another is not; the message is that of the other.
        """
        if self.count == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        if not self.any(failure is not None):
            return
        messages = self._messages("" if failure is None else str(failure) or type(failure).__name__)
        if failure is not None:
            raise failure
        rank, message = next((rank, message) for rank, message in enumerate(messages) if message)
        raise UserError(f"process {rank} of {self.count}: {message}")

    def check_same(self, digest: bytes, what: str) -> None:
        """Refuse to go on if what the digest, of at least 7 bytes, is of differs between the ranks.

        Raises:
            UserError: in all ranks.
        """
        numbers = self.gather(torch.tensor([int.from_bytes(digest[:7], "big")]), self.count)
        if not (numbers == numbers[0]).all():
            raise UserError(f"the {self.count} processes have different {what}; all need the same files and arguments")

    def _messages(self, own: str) -> list[str]:
        encoded = own.encode("utf-8", "replace")[:MESSAGE_BYTES]
        row = torch.zeros((1, MESSAGE_BYTES), dtype=torch.uint8)
        row[0, : len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8) if encoded else 0
        return [bytes(row).rstrip(b"\0").decode("utf-8", "replace") for row in self.gather(row, self.count).numpy()]

    def _add_up(self, total: Tensor) -> None:
        try:
            dist.all_reduce(total)
        except RuntimeError as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"lost another of the {self.count} processes of this run ({reason:.200}); see what it says"
            ) from error


ALONE = Ranks()


@contextmanager
def join_ranks(device: str) -> Iterator[tuple[Ranks, torch.device]]:
    """Meet the other processes that torchrun has started, if it has; and choose where this one computes.

    Each process gets a GPU of its own, or they share the CPU. Tensors on GPUs are added up by NCCL, others by gloo.

    Args:
        device: "auto", "cpu", "cuda"; for one process "cuda:<number>" too.

    Raises:
        UserError: there is no such device, or the environment of the process is not what torchrun makes it.
    """
    count = _number("WORLD_SIZE") if "WORLD_SIZE" in os.environ else 1
    if count == 1:
        yield ALONE, choose_device(device)
        return
    missing = [name for name in ENVIRONMENT if name not in os.environ]
    if missing:
        raise UserError(f"WORLD_SIZE is {count}, but {', '.join(missing)} not set; expected what torchrun sets")
    where = choose_device(device)
    if where.type == "cuda":
        if where.index is not None:
            raise UserError(f"device: {device} is one GPU, of {count} processes each needs its own; expected cuda")
        where = choose_device(f"cuda:{_number('LOCAL_RANK')}")
    rank = _number("RANK")
    try:
        store, _, _ = next(rendezvous("env://"))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo",
            store=_unused_part(store, rank, count),
            rank=rank,
            world_size=count,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot meet the other {count - 1} processes of this run ({reason:.200})") from error
    try:
        yield Ranks(rank, count), where
    finally:
        dist.destroy_process_group()


def _unused_part(store: Store, rank: int, count: int) -> Store:
    """Return a part of the store in which only processes that are here now have written.

    When torchrun starts processes again, the store still has the addresses of those before them, and whoever comes
    first would wait for the dead. So every process brings a name that was never used; the first lists those that it
    finds, again and again until all have seen theirs in the list; and its own is the name of the part.

    Raises:
        RuntimeError: a process did not come.
    """
    own = secrets.token_hex(8)
    store.set(f"ahernet/came/{rank}", own)
    deadline = time.monotonic() + MEETING_SECONDS
    while time.monotonic() < deadline:
        if rank == 0:
            names = [own, *(store.get(f"ahernet/came/{other}").decode() for other in range(1, count))]
            store.set("ahernet/here", " ".join(names))
            if store.check([f"{own}/{other}" for other in range(1, count)]):
                return PrefixStore(own, store)
        else:
            names = store.get("ahernet/here").decode().split()
            if len(names) == count and names[rank] == own:
                store.set(f"{names[0]}/{rank}", "seen")
                return PrefixStore(names[0], store)
        time.sleep(0.02)
    raise RuntimeError(f"not all came within {MEETING_SECONDS} s")


def is_first_process() -> bool:
    """Whether this is the process that speaks for all that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"


def _number(name: str) -> int:
    value = os.environ[name]
    if not value.isdecimal():
        raise UserError(f"the environment variable {name}: expected a number, as torchrun sets it, got {value!r:.40}")
    return int(value)


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Split tensors, in order and of one type, into groups of at most BUCKET_BYTES or of one."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.nbytes > BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
