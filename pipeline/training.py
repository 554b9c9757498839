"""Runs a training loop on the workers of a Ray Train group and tells how far it is.

A loop keeps its state in the run directory alone (`pipeline.epochs`). When a worker dies, Ray Train starts the whole
group again and the loop continues from its last commit, just as it does after a new start of the driver.
"""

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.errors import SemiPruneError, UserError
from pipeline.metrics import Meter
from pipeline.resources import Resources
from pipeline.stage import Progress

if TYPE_CHECKING:
    import torch

TIMEOUT = timedelta(minutes=30)
"""For how long a worker waits for another one: rank 0 may be slow to commit."""

RESIZE = 60.0
"""Seconds between two looks at whether an elastic training should have another number of workers."""


class _Report:
    """What the workers tell the driver; an actor. done: where rank 0 is, None until it has said where it starts."""

    def __init__(self) -> None:
        self._done: int | None = None
        self._mistake: UserError | None = None

    def tick(self, done: int) -> None:
        self._done = done

    def fail(self, mistake: UserError) -> None:
        self._mistake = mistake

    def read(self) -> tuple[int | None, UserError | None]:
        return self._done, self._mistake


@dataclass(frozen=True)
class Worker:
    """What a loop knows about its place in the group.

    device: where it computes; tick(done): tells the driver; meter: measures the loop.
    """

    rank: int
    world_size: int
    device: "torch.device"
    tick: Callable[[int], None]
    meter: Meter

    def tick_steps(self, before: int, rows_per_step: float, steps: int) -> None:
        """Tell the driver of so many steps of an epoch, before which so many rows were done."""
        self.tick(before + round(steps * rows_per_step))

    def agree(self, value: Any) -> Any:
        """Rank 0's value, on every rank: for what each would otherwise read for itself at another moment."""
        import torch.distributed as dist

        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        import torch.distributed as dist

        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


Loop = Callable[..., None]
"""`loop(worker: Worker, **arguments)`, importable by name in every worker process."""


@dataclass(frozen=True)
class _Job:
    """What each Ray Train worker runs; uri: the stage's folder; report: the actor; threads: of torch."""

    loop: Loop
    arguments: dict[str, Any]
    uri: str
    report: Any
    threads: int
    use_gpu: bool


def _work(job: _Job) -> None:
    """Runs in each Ray Train worker."""
    import ray
    from ray import train

    report = job.report
    if ray.get(report.read.remote())[1] is not None:
        return  # a worker of the group before this one has met a mistake that would come again

    import torch

    torch.set_num_threads(job.threads)
    context = train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    last = 0.0

    def tick(done: int) -> None:
        nonlocal last
        if rank == 0 and time.monotonic() - last > 0.2:
            report.tick.remote(done)
            last = time.monotonic()

    with _group(rank, world_size, job.use_gpu) as device:
        try:
            job.loop(Worker(rank, world_size, device, tick, Meter(job.uri)), **job.arguments)
        except UserError as mistake:
            ray.get(report.fail.remote(mistake))
            raise


@contextlib.contextmanager
def _group(rank: int, world_size: int, use_gpu: bool) -> Iterator["torch.device"]:
    """The device of a worker whose torch.distributed is initialised, unless it is alone.

    On CPUs we do that ourselves: Ray's TorchConfig has the controller import torch before it starts the workers.
    """
    import ray
    import torch
    from ray.train.collective import broadcast_from_rank_zero
    from torch import distributed

    if use_gpu:
        from ray.train.torch import get_device

        yield get_device()
        return
    if world_size > 1:
        store = None
        if rank == 0:
            store = distributed.TCPStore(
                ray.util.get_node_ip_address(), 0, world_size, is_master=True, wait_for_workers=False, timeout=TIMEOUT
            )
        host, port = broadcast_from_rank_zero((store.host, store.port) if store else None)
        store = store or distributed.TCPStore(host, port, world_size, is_master=False, timeout=TIMEOUT)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    yield torch.device("cpu")
    if world_size > 1:
        distributed.destroy_process_group()


def _trainer(job: _Job, resources: Resources, notes: str) -> Any:
    """Ray Train's trainer of `job`; notes: a folder of this machine, for what Ray Train writes down.

    Its checkpoints and reports would go there too, but the loops use neither.
    """
    import ray
    from ray.train import BackendConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer  # the base of every trainer of Ray Train

    class Trainer(DataParallelTrainer):
        """Without the two actors that serve us nothing: each is a process that starts while the workers do.

        One hands out Ray datasets. The other removes the placement group of a controller that was killed, as Ray does
        anyway when the driver ends, and keeps the end of a training waiting for up to a second.
        """

        def _create_default_callbacks(self) -> list[Any]:
            unused = ("DatasetsCallback", "PlacementGroupCleanerCallback")
            return [each for each in super()._create_default_callbacks() if type(each).__name__ not in unused]

    report = job.report  # not the job: its arguments would have the controller import torch

    class MistakesEndIt(UserCallback):
        """The mistake would come again, so no other group is started: Ray Train gives up when a callback fails."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            if ray.get(report.read.remote())[1] is not None:
                raise RuntimeError("a mistake of the user's")

    fewest, most = resources.min_workers, resources.max_workers
    per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
    backend = BackendConfig()
    if job.use_gpu:
        from ray.train.torch import TorchConfig

        per_worker["GPU"] = resources.gpus_per_worker
        backend = TorchConfig(backend="nccl")
    trainer = Trainer(
        partial(_work, job),
        backend_config=backend,
        scaling_config=ScalingConfig(
            num_workers=(fewest, most) if fewest < most else most,
            elastic_resize_monitor_interval_s=RESIZE,
            use_gpu=job.use_gpu,
            resources_per_worker=per_worker,
        ),
        run_config=RunConfig(
            name="training",
            storage_path=notes,
            failure_config=FailureConfig(max_failures=resources.max_failures),
            callbacks=[MistakesEndIt()],
        ),
    )
    # Ray reserves room for a run by this id, and keeps it for 3 minutes after a driver was killed. An elastic training
    # that begins again in this time would find no room but for that.
    object.__setattr__(trainer.train_run_context, "run_id", storage.sha256(job.uri.encode())[:32])
    return trainer


def train(
    loop: Loop, arguments: dict[str, Any], uri: str, resources: Resources, progress: Progress, total: int, unit: str
) -> None:
    """Run `loop` on `resources.num_workers` workers until it returns on all of them.

    Where that is a range, Ray Train starts the group again, with another number of workers, when nodes come or go.
    uri: the stage's folder, for messages and metrics. Raises the UserError that a worker raised; SemiPruneError when
    workers died more often than `resources.max_failures`.
    """
    import ray
    from ray.train import TrainingFailedError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # On this node, as Ray Train's controller is: elsewhere it could go with a node that the training survives.
    report = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(_Report).remote()
    job = _Job(loop, arguments, uri, report, resources.cpus_per_worker, resources.gpus_per_worker > 0)
    raised: list[BaseException] = []

    def fit() -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="semiprune-ray-train-") as notes:
                _trainer(job, resources, notes).fit()
        except BaseException as error:  # noqa: BLE001  raised again on the main thread
            raised.append(error)

    # Off the main thread, Ray Train leaves SIGINT alone: Ctrl-C then reaches us here, as anywhere else.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    mistake = None
    while thread.is_alive():
        thread.join(0.3)
        done, mistake = ray.get(report.read.remote(), timeout=30)  # for ever, if Ray itself is gone
        if done is not None:
            progress(done, total, unit)
    if mistake is not None:
        raise mistake
    if not raised:
        progress(total, total, unit)
        return
    error = raised[0]
    if isinstance(error, TrainingFailedError):
        raise SemiPruneError(
            f"the training in {uri!r} failed {resources.max_failures + 1} times and stopped; what was committed is "
            f"kept. Last cause: {str(error).strip().splitlines()[-1]}"
        ) from error
    raise error
