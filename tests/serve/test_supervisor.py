"""A server a device: what each is told, which ends are mended, and what the whole ends with. i-PI is in end_to_end/."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from beadwork.config import ServeConfig, resolve
from beadwork.errors import ConfigError
from beadwork.processes import module
from beadwork.serve import supervisor as devices
from beadwork.serve.supervisor import Child, Devices, plan

CONFIG = ServeConfig(simulation="in.xml", baseline="b", delta=["d"], devices=["cpu", "cpu"])


def test_each_server_has_its_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Threads divided, ports and folders of their own, everything else as it was given; paths from anywhere."""
    monkeypatch.chdir(tmp_path)
    also = {"dipole": "dip", "polarizability": str(tmp_path / "pol")}
    config = replace(CONFIG, threads=5, metrics="0.0.0.0:9100", out="o", cooldown=3, queue="q.db", also=also)
    one, two = plan(config, cores=16)
    assert one == replace(
        config,
        simulation=str(tmp_path / "in.xml"),
        baseline=str(tmp_path / "b"),
        delta=[str(tmp_path / "d")],
        queue=str(tmp_path / "q.db"),
        also={"dipole": str(tmp_path / "dip"), "polarizability": str(tmp_path / "pol")},
        devices=[],
        servers=2,
        threads=2,
        metrics="0.0.0.0:9100",
        out="o/dev-0",
    )
    assert two == replace(one, metrics="0.0.0.0:9101", out="o/dev-1")
    remote = "postgresql://host/q"
    assert plan(replace(config, queue=remote), 16)[0].queue == remote


def test_threads_of_the_environment_are_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores are divided only where nobody has said how many threads there are to be."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [one.threads for one in plan(CONFIG, cores=9)] == [0, 0]
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert [one.threads for one in plan(CONFIG, cores=9)] == [4, 4]
    assert [one.threads for one in plan(CONFIG, cores=1)] == [1, 1]


def test_servers_elsewhere_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes of two devices are four servers, each of which takes a quarter."""
    assert [one.servers for one in plan(replace(CONFIG, servers=4), 2)] == [4, 4]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    with pytest.raises(ConfigError, match="servers is 2, but there are 3 devices"):
        plan(replace(CONFIG, devices=["all"], servers=2), 2)


def test_a_server_sees_its_own_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number that PyTorch gives it here, which CUDA_VISIBLE_DEVICES may have changed already."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices._visible("cuda:2") == {"CUDA_VISIBLE_DEVICES": "2"}
    assert devices._visible("cpu") == devices._visible("cuda") == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert devices._visible("cuda:1") == {"CUDA_VISIBLE_DEVICES": "GPU-b"}
    with pytest.raises(ConfigError, match=r"names cuda:2, but CUDA_VISIBLE_DEVICES is 'GPU-a,GPU-b'"):
        plan(replace(CONFIG, devices=["cuda:2"]), 2)


def test_all_means_every_gpu_that_pytorch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one that PyTorch sees; none is a mistake."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [one.device for one in plan(replace(CONFIG, devices=["all"]), 2)] == ["cuda:0", "cuda:1"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match="sees no GPU"):
        plan(replace(CONFIG, devices=["all"]), 2)


def test_what_a_server_is_told_is_what_was_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The TOML file that each is started with gives its configuration again, every field of it."""
    config = replace(CONFIG, at={"x": "delta"}, weights=[1.0], mark_force=float("inf"), periodic=False, metrics=9100)
    child = Child(plan(replace(config, out=str(tmp_path), devices=["cuda:1"]), 2)[0])
    started: list[list[str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **kwargs: started.append([command, kwargs["env"]]))
    child.start()
    command, environment = started[0]
    assert command[:-1] == [*module("beadwork.cli"), "serve"]
    assert resolve({"simulation": command[-1]}) == replace(child.config, device="cuda")
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert Path(command[-1]).stat().st_mode & 0o777 == 0o600  # a queue's address may hold a password


def answer(folder: Path) -> str:
    """Python that leaves a record of three structures, and the word that it serves."""
    return (
        f"open({str(folder / 'beadwork.out')!r}, 'w').write('# step\\n 1 3 -1.0 0.1 0.2 0.01\\n');"
        f'open({str(folder / "status.json")!r}, \'w\').write(\'{{"format": 1, "state": "serving"}}\');'
    )


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Servers that are short Python programs, one for each start of each device; returns the exit code."""
    monkeypatch.setattr(devices, "RESTART_PAUSES_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(devices, "POLL_SECONDS", 0.01)
    popen = subprocess.Popen

    def call(*scripts: list[str], start_ipi: bool = False) -> int:
        done = str(tmp_path / "done")
        left = {f"dev-{number}": list(script) for number, script in enumerate(scripts)}

        def start(command: list[str], **kwargs: object) -> subprocess.Popen[bytes]:
            folder = Path(command[-1]).parent
            text = left[folder.name].pop(0).replace("ANSWER", answer(folder))
            text = text.replace("DONE", f"open({done!r}, 'w').close();")
            text = text.replace("WAIT", f"[time.sleep(0.01) for _ in iter(lambda: os.path.exists({done!r}), True)];")
            text = f"import os, sys, time; {text}"
            return popen([sys.executable, "-c", text], **kwargs)  # type: ignore[call-overload, no-any-return]

        monkeypatch.setattr(subprocess, "Popen", start)
        config = replace(CONFIG, devices=["cpu"] * len(scripts), out=str(tmp_path))
        code = Devices(config, 2, start_ipi).run()
        assert not any(left.values()), "not every server was started as often as it should have been"
        return code

    return call


EXIT = "WAIT time.sleep(0.3); sys.exit(0)"  # i-PI says EXIT, some time after what happens to the other
KILLED = "os.kill(os.getpid(), 9)"
ENDS = {
    "all is well": (["sys.exit(0)"], ["sys.exit(0)"], 0, []),
    "killed and back": ([KILLED, "DONE sys.exit(0)"], [EXIT], 0, ["killed by SIGKILL", "started again in 0 s"]),
    "killed for good": ([*[KILLED] * 3, f"DONE {KILLED}"], [EXIT], 137, ["by SIGKILL, and is not started again"]),
    "died of a bug": (["sys.exit(1)", "DONE sys.exit(0)"], [EXIT], 0, ["ended with exit code 1"]),
    "a device that has served": (["ANSWER sys.exit(4)", "DONE sys.exit(0)"], [EXIT], 0, ["4; i-PI sends its beads"]),
    "a model that is missing": (["DONE sys.exit(4)"], [EXIT], 4, ["exit code 4, and is not started again"]),
    "out of memory": (["ANSWER sys.exit(12)"] * 4, ["sys.exit(12)"], 12, ["no other server is there"]),
    "a mark passed": (["ANSWER sys.exit(11)"], ["ANSWER sys.exit(11)"], 11, ["exit code 11, and is not started"]),
    "the worst counts": (["sys.exit(5)"], ["sys.exit(11)"], 11, []),
    "too late to meet i-PI": (["sys.exit(0)"], ["time.sleep(60)"], 0, []),
    "nobody for one": (["WAIT sys.exit(0)"], ["ANSWER DONE time.sleep(1); sys.exit(8)"], 0, []),
    "late, with frames lost": (["WAIT sys.exit(0)"], ["ANSWER DONE time.sleep(1); sys.exit(9)"], 9, ["had ended"]),
    "nobody at all": (
        ["sys.exit(8)"],
        ["sys.exit(8)"],
        8,
        ["exit code 8, and is not started again; no other server is there"],
    ),
}


def test_a_server_that_has_served_long_earns_its_starts_anew(
    scripted: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that fails once a day is not given up on the fourth day."""
    monkeypatch.setattr(devices, "LONG_RUN_SECONDS", 0.0)
    assert scripted([*[KILLED] * 5, "DONE sys.exit(0)"], [EXIT]) == 0


@pytest.mark.parametrize("case", ENDS)
def test_which_end_of_a_device_is_started_again(
    scripted: Callable[..., int], capfd: pytest.CaptureFixture[str], tmp_path: Path, case: str
) -> None:
    """What a device may do better the next time is started again, what a model says of a structure is not.

    The exit code is that of the worst device that was lost for good; each end has its line.
    """
    one, two, code, said = ENDS[case]
    assert scripted(list(one), list(two)) == code
    log = capfd.readouterr().err
    for words in said:
        assert words in log
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["exit_code"] == code
    assert [len(device["exit_codes"]) for device in summary["devices"]] == [len(one), len(two)]
    assert [len(device["folders"]) for device in summary["devices"]] == [len(one), len(two)]
    assert summary["structures_evaluated"] == 3 * sum("ANSWER" in script for script in (*one, *two))


@pytest.mark.parametrize(
    ("late", "expected"),
    [
        ("ANSWER DONE os.kill(os.getpid(), signal.SIGSTOP); time.sleep(60)", "and is not started again"),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN); ANSWER DONE time.sleep(60)", "after it was told to: killed"),
    ],
    ids=["stopped", "deaf"],
)
def test_no_server_is_waited_for_without_end(
    scripted: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    late: str,
    expected: str,
) -> None:
    """SIGTERM reaches a server that somebody stopped, and one that does not heed it is killed, and said to be."""
    monkeypatch.setattr(devices, "STOP_TIMEOUT_SECONDS", 0.5)
    begin = time.monotonic()
    monkeypatch.setattr(devices.Devices, "_look", _interrupted(devices.Devices._look))
    code = scripted([f"import signal; {late}"])
    assert time.monotonic() - begin < 20
    assert code == 128 + signal.SIGTERM
    assert (expected in capfd.readouterr().err) == (expected == "after it was told to: killed")


def _interrupted(look: Callable[[Devices], None]) -> Callable[[Devices], None]:
    """A look at the servers in which SIGTERM comes, once one of them has answered."""

    def call(self: Devices) -> None:
        if not self._signal and any(child.answered() for child in self._children):
            signal.raise_signal(signal.SIGTERM)
        look(self)

    return call


class Ipi:
    """In place of an i-PI of ours: it ends with this code soon after it was started, or when it is told to."""

    def __init__(self, code: int | None) -> None:
        self.code = code
        self.told: list[bool] = []
        self.began = float("inf")

    def alone(self) -> AbstractContextManager[None]:
        """Nobody else is there."""
        return nullcontext()

    def start(self, folder: Path, tell: Callable[[str], None]) -> int:
        """Begin."""
        self.told.append(folder.is_dir())
        self.began = time.monotonic()
        return 1

    def stopped(self) -> int | None:
        """The code, where it has one of its own."""
        return self.code if time.monotonic() > self.began + 0.3 else None

    def end(self, now: Callable[[], bool]) -> int:
        """Whether it was waited for is what counts."""
        self.told.append(now())
        return 143 if self.code is None else self.code


@pytest.mark.parametrize(
    ("servers", "ipi", "code", "hurried"),
    [
        (["sys.exit(0)", "sys.exit(0)"], 0, 0, False),
        (["time.sleep(60)", "time.sleep(60)"], 3, 3, False),
        (["sys.exit(4)", "sys.exit(4)"], None, 4, True),
        (["ANSWER sys.exit(11)", "time.sleep(0.5); sys.exit(0)"], 0, 11, False),
    ],
)
def test_an_ipi_of_ours(
    scripted: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    servers: list[str],
    ipi: int | None,
    code: int,
    hurried: bool,
) -> None:
    """`run --devices` ends as i-PI does where no server has failed; servers that came too late for it are ended, and an
    i-PI without any server is not waited for."""
    ours = Ipi(ipi)
    monkeypatch.setattr(devices, "OwnIpi", lambda *_: ours)
    monkeypatch.setattr(devices, "read_simulation", lambda *_: None)
    assert scripted(*([server] for server in servers), start_ipi=True) == code
    assert ours.told == [True, hurried]
    assert json.loads((tmp_path / "summary.json").read_text())["exit_code"] == code
