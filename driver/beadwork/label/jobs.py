"""Run work in threads, in processes of this machine, or on a cluster through Slurm, by Parsl.

    [jobs]
    executor = "processes"      # threads (default), processes or slurm
    workers = 4                 # at once; on a cluster, on each node
    cores = 1                   # a worker
    [jobs.slurm]                # for executor = "slurm"
    partition = "long"
    account = "water"
    nodes = 2
    walltime = "24:00:00"
    options = "#SBATCH --constraint=milan"
    init = "module load gcc"    # lines of shell before a worker starts

One worker in threads, the default, needs no Parsl: the work is done in the calling thread. Threads are right for
labellers that wait for external programs; those that compute in Python (PySCF, most ASE calculators) need processes.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from beadwork.errors import ConfigError, ResourceError
from beadwork.packages import pip_install
from beadwork.processes import module
from beadwork.settings import at_least, check, setting

EXECUTORS = ("threads", "processes", "slurm")
#: s without a heartbeat after which a node counts as dead, and the work on it as lost
NODE_TIMEOUT_SECONDS = 120
#: blocks of workers that fail to start, one after the other, before the run ends with an error
MAX_START_FAILURES = 3
Item = TypeVar("Item")


@dataclass(frozen=True)
class Slurm:
    """The settings of a Slurm job.

    When its walltime is over, or its node fails, another job is submitted as long as there is work.
    """

    partition: str | None = setting(None, "as `sbatch` calls it", unset="the site's own")
    account: str | None = setting(None, "that pays", unset="the site's own")
    nodes: int = setting(1, "of the job, each with the workers of [jobs]", "nodes", rule=at_least(1))
    walltime: str = setting("24:00:00", "of the job; another one follows as long as there is work", "h:min:s")
    options: str = setting("", "further lines of the script: `#SBATCH --constraint=…`")
    init: str = setting("", "lines that each node runs first: `module load …`")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Jobs:
    """The [jobs] of a TOML file. Raises ConfigError for what does not go together."""

    executor: str = setting("threads", "what the workers are: `threads`, `processes` or `slurm`", choices=EXECUTORS)
    workers: int = setting(1, "at the same time; of Slurm, on each node", "workers", rule=at_least(1))
    cores: int = setting(1, "of each worker", "cores", rule=at_least(1))
    slurm: Slurm | None = setting(None, "the job, where the executor is `slurm`")

    def __post_init__(self) -> None:
        check(self)
        if (self.executor == "slurm") != (self.slurm is not None):
            raise ConfigError('jobs: executor = "slurm" and a table [jobs.slurm] belong together')

    @property
    def here(self) -> bool:
        """Whether all work is done in the calling thread, one item after the other."""
        return self.executor == "threads" and self.workers == 1

    @property
    def at_once(self) -> int:
        """Workers in all."""
        return self.workers * (self.slurm.nodes if self.slurm else 1)


class Pool:
    """Workers for the duration of a `with` block.

    folder: for Parsl's files during that time; the workers must see it too. They are removed afterwards. Raises
    ConfigError where Parsl is not installed.
    """

    def __init__(self, jobs: Jobs, folder: Path) -> None:
        self.jobs = jobs
        self._kernel: Any = None
        self._folder: Path | None = None
        if not jobs.here:
            # one for each run: two runs that share a queue must not share Parsl's files
            self._folder = Path(tempfile.mkdtemp(prefix="jobs-", dir=folder)).absolute()
            self._kernel = _parsl("dataflow.dflow").DataFlowKernel(config(jobs, self._folder))

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._kernel is not None and self._folder is not None:
            self._kernel.cleanup()
            shutil.rmtree(self._folder, ignore_errors=True)  # a worker may still write its last line

    def each(
        self, function: Callable[..., Any], items: deque[Item], *arguments: Any
    ) -> Iterator[tuple[Item, Future[Any]]]:
        """Call `function(item, *arguments)` for each item; yield item and future as they finish.

        function: importable by name, with arguments that can be pickled. An exception of it is in the future. The
        caller may append items (again) meanwhile: `items` is emptied from the left. Raises ResourceError where workers
        cannot be started.
        """
        app = None
        if self._kernel is not None:
            # with a kernel of its own: Parsl's global one would be shared with whatever else uses Parsl here
            app = _parsl().python_app(function, data_flow_kernel=self._kernel)
        running: dict[Future[Any], Item] = {}
        while items or running:
            while items and len(running) < self.jobs.at_once:  # no queue in Parsl: the caller may still append
                item = items.popleft()
                running[_call(function, item, *arguments) if app is None else app(item, *arguments)] = item
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                # every further item would fail alike, and no frame is to pay for it
                if _without_workers(future.exception()):
                    said = " ".join(str(future.exception()).split())
                    raise ResourceError(
                        f"no worker could be started, {MAX_START_FAILURES} times over: {said}", "look at [jobs]"
                    )
                yield running.pop(future), future


def lost(error: BaseException | None) -> bool:
    """Whether this error means that a worker died, and not that the work failed.

    By name: Parsl is optional, and its classes cannot be imported where it is missing.
    """
    return type(error).__module__ == "parsl.executors.high_throughput.errors" and type(error).__name__ in (
        "WorkerLost",
        "ManagerLost",
    )


def _without_workers(error: BaseException | None) -> bool:
    return type(error).__name__ == "BadStateException" and type(error).__module__ == "parsl.executors.errors"


def config(jobs: Jobs, folder: Path) -> Any:
    """Parsl's configuration. Its programs are named by path: they need not be on PATH."""
    return _parsl("config").Config(
        executors=[_executor(jobs, folder)],
        # else Parsl makes a folder `runinfo` wherever the user stands
        run_dir=str(folder),
        strategy="simple",  # starts another block after one has ended; with "none" Parsl would wait for ever
        initialize_logging=False,
    )


def _executor(jobs: Jobs, folder: Path) -> Any:
    if jobs.executor == "threads":
        return _parsl("executors").ThreadPoolExecutor(label="beadwork", max_threads=jobs.workers)
    htex = _parsl("executors.high_throughput.executor")
    programs = "parsl.executors.high_throughput."
    return htex.HighThroughputExecutor(
        label="beadwork",
        max_workers_per_node=jobs.workers,
        cores_per_worker=jobs.cores,
        # workers of this machine need no other network; nodes of a cluster find ours by themselves
        address=None if jobs.slurm else "127.0.0.1",
        # as `processes.module` has it: no module of the user's folder may be run in place of Parsl's
        launch_cmd=htex.DEFAULT_LAUNCH_CMD.replace(
            "process_worker_pool.py", shlex.join(module(programs + "process_worker_pool"))
        ),
        interchange_launch_cmd=module(programs + "interchange"),
        heartbeat_period=2,  # s; as often is it seen that a worker died
        heartbeat_threshold=NODE_TIMEOUT_SECONDS,
        # Parsl's own rule gives up with the first block that fails, and never once one has worked
        block_error_handler=partial(_parsl("jobs.error_handlers").windowed_error_handler, threshold=MAX_START_FAILURES),
        worker_logdir_root=str(folder),
        provider=_provider(jobs),
    )


def _provider(jobs: Jobs) -> Any:
    providers = _parsl("providers")
    # as many threads in NumPy as a worker has cores, or workers would take each other's time
    threads = f"export OMP_NUM_THREADS={jobs.cores}"
    blocks = {"init_blocks": 1, "min_blocks": 1, "max_blocks": 1}
    if jobs.slurm is None:
        return providers.LocalProvider(worker_init=threads, **blocks)
    return providers.SlurmProvider(
        partition=jobs.slurm.partition,
        account=jobs.slurm.account,
        nodes_per_block=jobs.slurm.nodes,
        # what Slurm is asked for must be what the workers take
        cores_per_node=jobs.workers * jobs.cores,
        walltime=jobs.slurm.walltime,
        scheduler_options=jobs.slurm.options,
        worker_init="\n".join(line for line in (jobs.slurm.init, threads) if line),
        launcher=_parsl("launchers").SrunLauncher(),
        **blocks,
    )


def _call(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Call here and now. An interruption of this process is no result: it is raised."""
    future: Future[Any] = Future()
    try:
        future.set_result(function(*arguments))
    except Exception as error:  # noqa: BLE001  (handed to the caller, as from any worker)
        future.set_exception(error)
    return future


def _parsl(part: str = "") -> Any:
    """Import Parsl, or a part of it, by name: it is heavy and may be absent."""
    try:
        return import_module(f"parsl.{part}" if part else "parsl")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "parsl":
            raise
        raise ConfigError("more than one worker needs a package that is missing", pip_install("parsl")) from error
