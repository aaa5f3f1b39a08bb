"""Ray's front door: the environment every entry point sets, connecting, and work in parallel on this node."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from medray.config import ConfigError

if TYPE_CHECKING:
    from medray.sections.training import ScalingSection

Item = TypeVar("Item")
Result = TypeVar("Result")
Mapper = Callable[[Callable[[Item], Result], Iterable[Item]], Iterable[Result]]

ENVIRONMENT = {
    # Nothing leaves the host.
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # It would send again what may have been carried out, for minutes; who calls asks first what is there.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # Under `uv run` Ray would otherwise upload the working folder and start every worker through uv.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Pages of a lost node's inner state; who was lost is said in a line of our own.
    "RAY_DEDUP_LOGS_SKIP_REGEX": r"A worker died or was killed|\[state-dump\]|has been marked dead|RayletClient",
    # Relative paths keep their meaning in workers, and a worker's print appears once.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # How often workers are asked whether they live, in seconds: each time costs them some of a step.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    # Where a node was just lost Ray may ask for more workers than fit: it is asked again with what there is by then.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    # At the end of a training nothing hangs on it; the default of 30 s would keep a run that was asked to stop.
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Its handler would print a trace of SIGTERM, and abort the process 3 s after it.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
    # A proxy that died is noticed in seconds; the default is 10.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    # A search keeps its own records, and goes on by them.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}

_CONNECTING = threading.Lock()
"""ray.init may not be entered twice; the data and the connection are prepared in two threads."""

LOCAL_PATIENCE_S = 3.0
"""parallel_map works in this process for so long before it asks Ray for workers, whose start costs about as much."""


def prepare_environment() -> None:
    """Set what Ray and MLflow read when they are imported; what the user has set stays."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def home() -> Path:
    """The folder of runs, stores and the embedded registry: $MEDRAY_HOME, or `medray` in the user's home.

    It does not depend on the working folder, which in a Ray job is a copy that is thrown away.
    """
    return Path(os.environ.get("MEDRAY_HOME") or Path.home() / "medray").expanduser().absolute()


def connect(dashboard: bool = False) -> None:
    """Join the cluster of $RAY_ADDRESS, or start one in this process that ends with it.

    A cluster that happens to run on this machine is joined only with RAY_ADDRESS=auto: two commands on a
    laptop do not wait for each other's CPUs.
    """
    import ray

    with _CONNECTING:
        if not ray.is_initialized():
            # Ray's processes end with the thread that started them, so that thread must not end.
            connected: Future[None] = Future()
            threading.Thread(target=_keep_connected, args=(dashboard, connected), name="ray", daemon=True).start()
            connected.result()


def _keep_connected(dashboard: bool, connected: Future[None]) -> None:
    """Connect, say so, and stay."""
    import ray

    address = os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {}
    if address == "local":
        cpus, gpus = resources()
        options = {"include_dashboard": dashboard, "num_cpus": int(cpus), "num_gpus": gpus}
        # Nobody takes this machine away; the watcher would cost 4 CPU seconds at the start of a training.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if dashboard:
        options["runtime_env"] = {"worker_process_setup_hook": _address_known()}
    try:
        # Workers' output goes to Ray's log files: what a person should see comes through the journal.
        ray.init(address=address, logging_level="error", log_to_driver=False, **options)
    except BaseException as error:
        connected.set_exception(error)
        return
    connected.set_result(None)
    threading.Event().wait()


def _address_known() -> Callable[[], None]:
    """What tells each process of the cluster where the cluster is.

    Ray Train asks its dashboard whether a training that was stopped is over, to give its CPUs back. It looks for the
    address in the environment, then in a file that any `ray start` on this machine has left behind.
    """

    def tell() -> None:  # nested, so that it travels by value and no process imports medray for it
        import os

        import ray

        os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)

    return tell


def aside(function: Callable[[], Result]) -> Result:
    """`function()` in a thread of its own: in the main thread Ray would take Ctrl-C and SIGTERM for itself."""
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="aside", daemon=True).start()
    return done.result()


@dataclass(frozen=True, slots=True)
class Allotment:
    """What one training takes: each worker has `cpus` (and as many threads) and, if `gpu`, one GPU."""

    workers: int
    cpus: float
    gpu: bool
    least: int | None = None
    """Workers that it goes on with when nodes are lost; None where it takes all or none."""


def joins_cluster() -> bool:
    """Whether this command works on a cluster that is already there, as a submitted job does."""
    return bool(os.environ.get("RAY_ADDRESS"))


def resources() -> tuple[float, int]:
    """CPUs and GPUs: of the cluster that is or will be joined, else of this machine, without starting Ray."""
    if joins_cluster():
        import ray

        connect()
        found = ray.cluster_resources()
        return found.get("CPU", 0.0), int(found.get("GPU", 0))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    installed = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    shown = None if visible is None else [item for item in visible.split(",") if item and not item.startswith("-")]
    return _own_cpus(), installed if shown is None else min(installed, len(shown))


def _own_cpus() -> float:
    """CPUs that this process may use: those it is bound to, within its container's quota."""
    bound = float(len(os.sched_getaffinity(0)))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if not quota.is_file():
        return bound
    allowed, period = quota.read_text(encoding="ascii").split()
    return bound if allowed == "max" else min(bound, max(1.0, int(allowed) // int(period)))


def nodes() -> list[float]:
    """CPUs of each node: of the cluster that is joined, else of this machine."""
    if not joins_cluster():
        return [_own_cpus()]
    import ray

    connect()
    return [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]


def allot(scaling: ScalingSection, share: int = 1) -> Allotment:
    """Turn `auto` into what there is, for one of `share` equal parts of it.

    Raises:
        ConfigError: if the cluster can never give what is asked for.
    """
    cpus, gpus = resources()
    gpu = gpus > 0 if scaling.gpu == "auto" else scaling.gpu
    asked, per_worker = scaling.workers, scaling.cpus_per_worker
    least, most = asked if isinstance(asked, tuple) else (None, asked)
    workers = (max(1, gpus // share) if gpu else 1) if most == "auto" else most
    count = workers * share
    if least is not None:  # nodes may come: what there is now only has to be enough to begin with
        count = max(least, min(count, gpus if gpu else int(cpus)))
    each = _even_cpus(nodes(), count) if per_worker == "auto" else per_worker
    if gpu and count > gpus:
        raise ConfigError([f"scaling: {count} workers with a GPU each were asked for; the cluster has {gpus} GPUs"])
    if sum(int(node / each) for node in nodes()) < count:
        found = f"{count} workers of {each:g} CPUs were asked for; the cluster has {cpus:g} CPUs"
        raise ConfigError([f"scaling: {found} on {len(nodes())} node(s)"])
    return Allotment(workers, each, gpu, least)


def _even_cpus(sizes: list[float], count: int) -> float:
    """The most CPUs that each of `count` workers can have, none of them torn between nodes."""
    for each in range(int(max(sizes, default=0)), 0, -1):
        if sum(int(size // each) for size in sizes) >= count:
            return float(each)
    return max(sizes, default=1.0) / count or 1.0


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` in order, first in this process, then, if that takes long, on this node's CPUs through Ray.

    Args:
        function: picklable; what it raises is raised here.
        items: units of work of about equal cost, each worth at least some milliseconds.
    """
    work = list(items)
    start = time.monotonic()
    done = 0
    while done < len(work) and time.monotonic() - start < LOCAL_PATIENCE_S:
        yield function(work[done])
        done += 1
    if done < len(work):
        yield from _ray_map(function, work[done:])


def _cpus_here() -> float:
    """CPUs that Ray may use on this node: none on a head that only coordinates."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return float(sum(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["NodeID"] == here))


def _ray_map(function: Callable[[Item], Result], work: Sequence[Item]) -> Iterator[Result]:
    """`map` by Ray tasks that stay on this node, whose disk the results may be written to."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    connect()
    if not _cpus_here():
        yield from map(function, work)
        return
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Not `function` itself: a partial, or an object that is called, is no function to Ray.
    task = ray.remote(lambda item: function(item)).options(scheduling_strategy=here, num_cpus=1)
    window = 4 * (os.cpu_count() or 1)
    pending = [task.remote(item) for item in work[:window]]
    for position in range(len(work)):
        if position + window < len(work):
            pending.append(task.remote(work[position + window]))
        yield ray.get(pending[position])
        pending[position] = None
