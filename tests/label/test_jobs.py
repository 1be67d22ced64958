"""Work in this thread, in threads, in processes, and through Slurm: Parsl does it, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beadwork.errors import ConfigError, ResourceError
from beadwork.harvest.queue import Queue
from beadwork.label import jobs
from beadwork.label import run as labelling
from beadwork.label.jobs import Jobs, Pool, Slurm
from beadwork.label.spec import Spec

pytest.importorskip("parsl", reason="pip install 'beadwork[learn]'")
psutil = pytest.importorskip("psutil", reason="comes with parsl")


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Any:
    """No process, no thread and no folder of Parsl's outlives its pool."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    threads = set(threading.enumerate())
    yield
    end = time.monotonic() + 30
    while time.monotonic() < end:
        left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
        alive = [thread for thread in threading.enumerate() if thread not in threads]
        if not left and not alive:
            break
        time.sleep(0.1)
    assert [child.cmdline() for child in left] == []
    assert alive == []
    assert not list(tmp_path.glob("**/jobs-*"))
    assert not Path("runinfo").exists()


@pytest.mark.parametrize("how", [Jobs(), Jobs(workers=3)], ids=["here", "threads"])
def test_every_item_once(how: Jobs, tmp_path: Path) -> None:
    """All results, each with its item; what raises is in its future; what is appended is done too."""
    items = deque([9, 4, -1, 25])
    roots: dict[int, float] = {}
    failed: list[int] = []
    with Pool(how, tmp_path) as pool:
        for item, future in pool.each(root, items, "said"):
            if future.exception() is None:
                roots[item] = future.result()
            else:
                assert isinstance(future.exception(), ValueError)
                failed.append(item)
                items.append(36)
    assert roots == {9: 3.0, 4: 2.0, 25: 5.0, 36: 6.0}
    assert failed == [-1]


def root(number: int, word: str) -> float:
    """A square root that minds its sign."""
    assert word == "said"
    if number < 0:
        raise ValueError(number)
    return float(number**0.5)


def test_threads_work_at_once(tmp_path: Path) -> None:
    """Three workers pass a gate together, which one after the other never could."""
    gate = threading.Barrier(3, timeout=20)
    with Pool(Jobs(workers=3), tmp_path) as pool:
        places = [future.result() for _, future in pool.each(lambda _: gate.wait(), deque(range(3)))]
    assert sorted(places) == [0, 1, 2]


@pytest.mark.slow
def test_a_worker_killed_in_mid_label(
    fill: Callable[[int], Queue], springs: Callable[..., Spec], diary: Any, tmp_path: Path
) -> None:
    """Three processes, one killed with its label half done: no label is lost, none is made twice."""
    queue = fill(9)
    spec = springs(arguments={"seconds": 1.0}, jobs=Jobs("processes", 3))
    killed: list[tuple[int, str]] = []

    def kill() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            half = set(diary.calls) - set(diary.ends)
            if len(diary.ends) >= 2 and half:
                killed.append(min(half))
                os.kill(killed[0][0], signal.SIGKILL)
                return
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    report = labelling.label(queue, spec)
    killer.join()
    assert str(report) == "9 labelled"
    ((process, energy),) = killed
    assert len({pid for pid, _ in diary.calls}) >= 3
    ends = [told for _, told in diary.ends]
    assert len(ends) == len(set(ends)) == 9
    assert len(diary.calls) == 10
    first, second = (pid for pid, told in diary.calls if told == energy)
    assert first == process != second
    assert (process, energy) not in diary.ends
    for row in queue.rows():
        assert row.status == "labelled"
        assert (row.label or {})["energy"] == 0.5 * (row.kept.frame.positions**2).sum()
        assert row.attempts == (2 if f"{(row.label or {})['energy']:.12f}" == energy else 1)


@pytest.mark.slow
def test_a_frame_that_kills_its_workers_is_set_aside(
    fill: Callable[[int], Queue], springs: Callable[..., Spec], diary: Any
) -> None:
    """Out of memory twice, say: the frame is set aside with the reason, and the others get their labels."""
    queue = fill(3)
    doomed = f"{0.5 * float((queue.get(2).kept.frame.positions ** 2).sum()):.12f}"
    spec = springs(arguments={"suicide": doomed}, jobs=Jobs("processes", 2))
    report = labelling.label(queue, spec)
    assert str(report) == "2 labelled, 1 failed"
    row = queue.get(2)
    assert (row.status, row.attempts) == ("failed", 2)
    assert "worker died" in str(row.reason)


@pytest.mark.slow
def test_a_block_that_ends_is_followed_by_another(
    fill: Callable[[int], Queue], springs: Callable[..., Spec], diary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole node goes in mid-label, as at the end of a Slurm job: nothing hangs, and no label is lost."""
    monkeypatch.setattr(jobs, "NODE_TIMEOUT_SECONDS", 15)  # a busy machine is no dead one
    queue = fill(6)
    spec = springs(arguments={"seconds": 1.0}, jobs=Jobs("processes", 2))
    ended: list[int] = []

    def end() -> None:
        limit = time.monotonic() + 120
        while time.monotonic() < limit:
            half = set(diary.calls) - set(diary.ends)
            if len(diary.ends) >= 2 and half:
                manager = psutil.Process(min(half)[0])
                while "process_worker_pool" not in " ".join(manager.cmdline()):
                    manager = manager.parent()
                while "process_worker_pool" in " ".join(manager.parent().cmdline()):
                    manager = manager.parent()
                family = [*manager.children(recursive=True), manager]
                ended.extend(process.pid for process in family)
                for process in family:
                    process.kill()
                return
            time.sleep(0.02)

    killer = threading.Thread(target=end)
    killer.start()
    report = labelling.label(queue, spec)
    killer.join()
    assert len(ended) >= 3, "the pool of workers and both of them"
    assert str(report) == "6 labelled"
    assert {row.status for row in queue.rows()} == {"labelled"}
    after = {pid for pid, _ in diary.ends} - set(ended)
    assert after, "workers of a second block"


@pytest.mark.slow
def test_workers_that_cannot_start(
    fill: Callable[[int], Queue], springs: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that fails at once, as with a wrong account, is tried a few times and then said; no frame pays for it."""
    provider = jobs._parsl("providers").LocalProvider
    monkeypatch.setattr(jobs, "_provider", lambda _: provider(worker_init="exit 3", init_blocks=1, max_blocks=1))
    queue = fill(2)
    with pytest.raises(ResourceError, match=r"no worker could be started, 3 times over: .*look at \[jobs\]"):
        labelling.label(queue, springs(jobs=Jobs("processes", 2)))
    assert {(row.status, row.attempts) for row in queue.rows()} == {("waiting", 0)}


@pytest.mark.slow
def test_workers_that_die_before_they_begin(
    fill: Callable[[int], Queue], springs: Callable[..., Spec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker processes that die of an import, before they know their frame: the run ends, and no frame pays for it."""
    queue, spec = fill(2), springs(jobs=Jobs("processes", 2))
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "class Killer:\n"
        "    def find_spec(self, name, *others):\n"
        "        if name == 'beadwork.label.worker':\n"
        "            os.kill(os.getpid(), 9)\n"
        "sys.meta_path.insert(0, Killer())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ResourceError, match=r"6 workers, one after the other, died before they had begun"):
        labelling.label(queue, spec)
    assert {(row.status, row.attempts) for row in queue.rows()} == {("waiting", 0)}


@pytest.mark.slow
def test_interrupted_with_processes(
    fill: Callable[[int], Queue], springs: Callable[..., Spec], diary: Any, tmp_path: Path
) -> None:
    """SIGTERM in mid-label: all claims are given back, the workers are gone, the code is the signal's."""
    springs()
    queue = fill(4)
    settings = tmp_path / "labeller.toml"
    settings.write_text(
        'kind = "ase"\n[jobs]\nexecutor = "processes"\nworkers = 2\n[settings]\ntheory = "springs"\n'
        'calculator = "toy_calculator:Springs"\nignores_charge = true\n'
        f'arguments = {{ where = "{tmp_path}", seconds = 600 }}\n'
    )
    command = [sys.executable, "-m", "beadwork.cli", "label", queue.name, "--with", str(settings)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while len(diary.calls) < 2:
        assert time.monotonic() < end, process.communicate(timeout=1)
        time.sleep(0.1)
    workers = [pid for pid, _ in diary.calls]
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert [row.status for row in queue.rows()] == ["waiting"] * 4
    # on a busy machine they end a moment after the command that told them to
    left = [psutil.Process(pid) for pid in workers if psutil.pid_exists(pid)]
    assert psutil.wait_procs(left, timeout=20)[1] == []


# Parsl leaves the sockets open with which it asks for this machine's addresses
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_slurm_is_told_what_the_file_says(tmp_path: Path) -> None:
    """The block of a TOML file becomes Parsl's provider, launcher and worker command; not run here."""
    slurm = Slurm("long", "water", 2, "12:30:00", "#SBATCH --constraint=milan", "module load gcc")
    configured = jobs.config(Jobs("slurm", 8, 4, slurm), tmp_path)
    (executor,) = configured.executors
    provider = executor.provider
    assert type(provider).__name__ == "SlurmProvider"
    assert (provider.partition, provider.account, provider.nodes_per_block) == ("long", "water", 2)
    assert (provider.cores_per_node, provider.walltime) == (32, "12:30:00")
    assert "#SBATCH --constraint=milan" in provider.scheduler_options
    assert provider.worker_init.splitlines()[:2] == ["module load gcc", "export OMP_NUM_THREADS=4"]
    assert type(provider.launcher).__name__ == "SrunLauncher"
    assert (executor.max_workers_per_node, executor.cores_per_worker) == (8, 4)
    assert "process_worker_pool" in executor.launch_cmd
    assert Jobs("slurm", 8, 4, slurm).at_once == 16
    assert configured.run_dir == str(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [{"executor": "cloud"}, {"workers": 0}, {"cores": 0}, {"executor": "slurm"}, {"slurm": Slurm()}],
    ids=str,
)
def test_jobs_that_make_no_sense(settings: dict[str, Any]) -> None:
    """Refused when the file is read."""
    with pytest.raises(ConfigError):
        Jobs(**settings)
