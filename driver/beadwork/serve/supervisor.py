"""`--devices`: a server on each device, as a process of its own; i-PI shares its beads among them.

This process computes nothing. It starts the servers, and i-PI where it is `beadwork run`, passes on what they say and
which signals come, and starts a server that died again. What each leaves behind is in a folder of its own, `dev-0`,
`dev-1`, …
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from logging import INFO, WARNING
from pathlib import Path
from types import FrameType
from typing import Any

import tomli_w

from beadwork.config import ServeConfig, listen_at
from beadwork.disk import ignore_closed_terminal, rotate_file, writing
from beadwork.errors import ConfigError, ConnectionLost, ModelError, ResourceError
from beadwork.ipi.process import LISTEN, OwnIpi
from beadwork.ipi.simulation import read_simulation
from beadwork.log import flags, logger, progress, taken_apart
from beadwork.observe import status
from beadwork.observe.record import NAME as RECORD
from beadwork.observe.record import read_record
from beadwork.processes import as_shell, end, kill, launch, module
from beadwork.settings import declared
from beadwork.signals import handled

#: seconds before a server that died is started again, the first time, the second time, …; then never
RESTART_PAUSES_SECONDS = (1.0, 10.0, 60.0)
#: seconds after which a server that has served so long has earned all of them anew
LONG_RUN_SECONDS = 3600.0
#: the configuration of one server, in its folder
OPTIONS_FILE = "serve.toml"
#: seconds between two looks at the servers
POLL_SECONDS = 0.1
#: seconds that a server gets to end after it was told to: it may be amid an evaluation, with a queue to write after it
STOP_TIMEOUT_SECONDS = 300.0
#: exit codes of a device that has failed; of no use at the start, where they say that a model is missing or too large
DEVICE_ERRORS = (ModelError.exit_code, ResourceError.exit_code)


def plan(config: ServeConfig, cores: int) -> list[ServeConfig]:
    """The configuration of each server, in the order of the devices; paths absolute. Raises ConfigError."""
    devices = _all() if config.devices == ["all"] else config.devices
    for device in devices:
        _visible(device)
    servers = config.servers or len(devices)
    if servers < len(devices):
        raise ConfigError(f"servers is {servers}, but there are {len(devices)} devices, each of which is a server")
    threads = max(1, (config.threads or cores) // len(devices))
    if not config.threads and "OMP_NUM_THREADS" in os.environ:
        threads = 0  # the user's own choice, for each server
    return [
        replace(
            config,
            **_absolute(config),
            device=device,
            devices=[],
            servers=servers,
            threads=threads,
            metrics=_listen(config.metrics, number),
            out=str(Path(config.out) / f"dev-{number}"),
        )
        for number, device in enumerate(devices)
    ]


def _absolute(config: ServeConfig) -> dict[str, Any]:
    """The settings that are paths, but for `out`: the servers' serve.toml lies in folders of their own, from which
    relative ones would count."""

    def one(path: str) -> str:
        return path if "://" in path else str(Path(path).absolute())

    found: dict[str, Any] = {}
    for entry in declared(ServeConfig):
        value = getattr(config, entry.name)
        if not entry.setting.path or not value or entry.name == "out":
            continue
        if isinstance(value, dict):
            found[entry.name] = {name: one(path) for name, path in value.items()}
        else:
            found[entry.name] = [one(path) for path in value] if isinstance(value, list) else one(value)
    return found


def _all() -> list[str]:
    import torch

    if not torch.cuda.device_count():
        raise ConfigError("devices is all, but PyTorch sees no GPU", "name devices, such as cpu,cpu, or leave it out")
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def _listen(metrics: str | int | None, number: int) -> str | None:
    """The port after that of the server before; 0 is a free one for each."""
    if metrics is None:
        return None
    host, port = listen_at(metrics)
    return f"{host}:{port + number if port else 0}"


@dataclass(eq=False)
class Child:
    """One device. folders: of its servers that died; codes: exit codes of its servers."""

    config: ServeConfig
    folder: Path = field(init=False)
    folders: list[Path] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    again_at: float | None = 0.0  # time of its next start; None where it runs, or will not be started again
    failures: int = 0
    verdict: int = 0  # exit code of this device, for ours
    dismissed: bool = False  # i-PI has ended, and this server was started too late for it
    stop_by: float | None = None  # time at which it is killed; None where it was not told to end
    _read: int = 0

    def __post_init__(self) -> None:
        self.folder = Path(self.config.out)

    @property
    def name(self) -> str:
        """The prefix of its lines."""
        return f"{self.folder.name} ({self.config.device})"

    def start(self) -> None:
        """Start the server, with its configuration and its log in its folder."""
        if self.codes:
            # what the dead server wrote is part of the run: its structures and frames are counted
            self.folders.append(rotate_file(self.folder, "-died-"))
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in (RECORD, "beadwork.log"):  # `_answered` would count an earlier run's
                rotate_file(self.folder / name)
            # an old state would be taken for that of the new server until it writes its own
            (self.folder / status.NAME).unlink(missing_ok=True)
            # paths in serve.toml count from its own folder, which is where the outputs go
            # one GPU alone is visible to it, and is `cuda` to it
            settings = asdict(replace(self.config, device=self.config.device.partition(":")[0], out="."))
            told = self.folder / OPTIONS_FILE
            told.unlink(missing_ok=True)
            told.touch(0o600)  # the URL of a queue may contain a password
            told.write_text(tomli_w.dumps({key: value for key, value in settings.items() if value is not None}))
            command = [*module("beadwork.cli"), "serve", str(told), *flags()]
            # before CUDA is initialised, which happens in the server: its devices are fixed from then on
            environment = {**os.environ, **_visible(self.config.device)}
            # a group of its own: Ctrl-C reaches this process, which passes it on once
            self.process = launch(command, self.folder / "beadwork.log", environment=environment, group=True)
        self.began, self.again_at, self._read, self.stop_by = time.monotonic(), None, 0, None

    def stop(self, number: int) -> None:
        """Tell it to end, with this signal. One that was stopped (SIGSTOP) goes on, or it would never hear of it."""
        if self.process and self.process.poll() is None:
            self.stop_by = self.stop_by or time.monotonic() + STOP_TIMEOUT_SECONDS
            self.process.send_signal(number)
            # after the first signal, which waits until the process goes on
            self.process.send_signal(signal.SIGCONT)

    def say(self) -> None:
        """Print the complete lines that are new in its log."""
        if self.process is None:
            return
        with writing(Path("the log")), ignore_closed_terminal():
            with open(self.folder / "beadwork.log", "rb") as log:
                log.seek(self._read)
                new = log.read()
            # a line that is being written is read whole at the next look
            whole = new[: new.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                level, text = taken_apart(line)
                progress.log(level, "%s: %s", self.name, text)

    def waits(self) -> bool:
        """Whether it waits for i-PI."""
        try:
            return str(status.read_status(self.folder)["state"]) == "waiting"
        # it has not come so far as to write a status
        except ConfigError:
            return True

    def answered(self) -> int:
        """Structures evaluated by all servers of this device."""
        return sum(map(_answered, (*self.folders, self.folder)))


def _answered(folder: Path) -> int:
    """Structures that a server has evaluated."""
    # from the record and not from summary.json, which a killed server does not write
    record = folder / RECORD
    return int(read_record(record)[0][:, 1].sum()) if record.exists() else 0


def _visible(device: str) -> dict[str, str]:
    """The environment in which this GPU is the only visible one, so that no engine can use another.

    Numbers count within CUDA_VISIBLE_DEVICES of this process, as PyTorch counts.
    """
    number = device.partition(":")[2]
    if not number:
        return {}
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(int(number) + 1)))).split(",")
    if int(number) >= len(seen):
        raise ConfigError(f"devices names {device}, but CUDA_VISIBLE_DEVICES is {','.join(seen)!r}")
    return {"CUDA_VISIBLE_DEVICES": seen[int(number)]}


class Devices:
    """The servers of one i-PI on this machine. cores: to be shared by them. start_ipi: whether i-PI is ours, too."""

    def __init__(self, config: ServeConfig, cores: int, start_ipi: bool = False) -> None:
        self._out = Path(config.out)
        self._ipi = None
        if start_ipi:
            self._ipi = OwnIpi(read_simulation(Path(config.simulation), config.sockets_prefix), config.sockets_prefix)
            # as `Session` has it for one server: our i-PI must have the time to listen
            config = replace(config, patience=max(config.patience, LISTEN))
        # after i-PI's input was read: a mistake in it is said once, and not by every server
        self._children = [Child(one) for one in plan(config, cores)]
        self._signal = 0

    def run(self) -> int:
        """Serve until i-PI has said EXIT, or no server is left, and return the worst exit code.

        A server that died and was started again, or that i-PI did not need, counts as 0; a signal as 128 plus its
        number. Where no server has failed it is the code of our own i-PI. Raises errors of the start.
        """
        with status.claimed(self._out), self._ipi.alone() if self._ipi else nullcontext():
            # under the lock, since another run's folders must not be touched
            self._tidy()
            left = self._watch_over()
            code = 128 + self._signal if self._signal else max(child.verdict for child in self._children) or left
            self._sum_up(code)
        return code

    def _watch_over(self) -> int:
        """Until all have ended; return the exit code of our own i-PI, 0 where there is none."""
        interrupted, reload = self._on_signal, self._on_reload
        left = 0
        with handled({signal.SIGINT: interrupted, signal.SIGTERM: interrupted, signal.SIGHUP: reload}):
            try:
                if self._ipi:
                    self._ipi.start(self._out, self._log)
                while any(child.process or child.again_at is not None for child in self._children):
                    self._look()
                    time.sleep(POLL_SECONDS)
            finally:
                self._stop(signal.SIGTERM)  # also where this process fails: servers must not outlive it
                for child in self._children:
                    if child.process:
                        end(child.process, STOP_TIMEOUT_SECONDS)
                if self._ipi:
                    left = self._ipi.end(lambda: bool(self._signal) or not self._finished())
                    if left and not self._signal:
                        self._log(
                            f"i-PI ended with exit code {left}; what it said is in {self._out / 'i-pi.log'}",
                            WARNING,
                        )
        return left

    def _tidy(self) -> None:
        """Rotate the folders of an earlier run's servers, which `format_status` would count as servers of this one.

        Raises ConfigError where one of them still runs, as they do when their parent was killed.
        """
        found = _servers(self._out)
        for folder in found:
            # servers outlive a parent that was killed with -9, and still write there
            with status.claimed(folder):
                pass
        with writing(self._out):
            (self._out / status.NAME).unlink(missing_ok=True)
        ours = {child.folder for child in self._children}
        for folder in found:
            if folder not in ours:
                rotate_file(folder, "-earlier-")

    def _look(self) -> None:
        for child in self._children:
            code = child.process.poll() if child.process else None
            child.say()
            if code is None and child.process and child.stop_by and time.monotonic() > child.stop_by:
                self._log(
                    f"{child.name} has not ended {STOP_TIMEOUT_SECONDS:g} s after it was told to: killed", WARNING
                )
                code = kill(child.process)
            if code is not None:
                child.process = None
                child.codes.append(code)
                self._ended(child, code)
            # i-PI has ended: a server that comes now would wait for nobody
            if self._finished() or self._signal:
                child.again_at = None
                if child.process and not child.dismissed and not self._signal and child.waits():
                    child.dismissed = True
                    child.stop(signal.SIGTERM)
            elif child.again_at is not None and time.monotonic() >= child.again_at:
                child.start()
                if self._signal:  # it came meanwhile
                    self._stop(self._signal)

    def _finished(self) -> bool:
        """Whether i-PI has said EXIT to one of them, or is ours and has ended."""
        gone = self._ipi is not None and self._ipi.stopped() is not None
        return gone or any(0 in child.codes for child in self._children)

    def _ended(self, child: Child, code: int) -> None:
        # a server that was started again as i-PI ended finds nobody, which is no fault of its device
        late = self._finished() and (child.dismissed or code == ConnectionLost.exit_code)
        if code == 0 or self._signal or late:
            return
        said = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        child.verdict = as_shell(code)
        if self._finished():
            self._log(f"{child.name} {said}, after i-PI had ended", WARNING)
            return
        # an error of a structure would come again on any device; a crash or an error of the device need not
        mends = code < 0 or code == 1 or (code in DEVICE_ERRORS and _answered(child.folder) > 0)
        if time.monotonic() - child.began > LONG_RUN_SECONDS:
            # a device that fails once a day is not given up on the fourth day
            child.failures = 0
        others = sum(other.process is not None for other in self._children)
        goes_on = f"i-PI sends its beads to the {others} left" if others else "no other server is there"
        if mends and child.failures < len(RESTART_PAUSES_SECONDS):
            pause = RESTART_PAUSES_SECONDS[child.failures]
            child.failures += 1
            child.verdict = 0
            child.again_at = time.monotonic() + pause
            self._log(f"{child.name} {said}; {goes_on}; it is started again in {pause:g} s", WARNING)
        else:
            self._log(f"{child.name} {said}, and is not started again; {goes_on}", WARNING)

    def _sum_up(self, code: int) -> None:
        path = self._out / "summary.json"
        rotate_file(path)
        devices: list[dict[str, Any]] = [
            {
                "device": child.config.device,
                "folders": [folder.name for folder in (*child.folders, child.folder)],
                "exit_codes": child.codes,
                "structures_evaluated": child.answered(),
            }
            for child in self._children
        ]
        total = sum(one["structures_evaluated"] for one in devices)
        with writing(path):
            path.write_text(
                json.dumps({"exit_code": code, "structures_evaluated": total, "devices": devices}, indent=2) + "\n"
            )
        shares = ", ".join(
            f"{one['structures_evaluated']} by {child.name}" for one, child in zip(devices, self._children, strict=True)
        )
        self._log(f"{total} structures evaluated, {shares}; all of this is in {path}")

    def _send(self, number: int) -> None:
        for child in self._children:
            if child.process and child.process.poll() is None:
                child.process.send_signal(number)

    def _stop(self, number: int) -> None:
        for child in self._children:
            child.stop(number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._stop(number)

    def _on_reload(self, number: int, frame: FrameType | None) -> None:
        self._send(number)

    @staticmethod
    def _log(text: str, level: int = INFO) -> None:
        with writing(Path("the log")):
            logger.log(level, "%s", text)


def _servers(out: Path) -> list[Path]:
    """The folders of servers, without those put aside."""
    # rotated folders (dev-0-died-1) have a serve.toml too
    named = [told.parent for told in sorted(out.glob(f"dev-*/{OPTIONS_FILE}"))]
    return [folder for folder in named if folder.name.removeprefix("dev-").isdigit()]


def read_statuses(out: Path) -> list[tuple[str, dict[str, Any]]]:
    """The status of each server, with the name of its folder; that of the run's own folder has none.

    Raises ConfigError where there is none, or one cannot be read.
    """
    folders = _servers(out)
    if (out / status.NAME).exists() or not folders:
        return [("", status.read_status(out))]
    return [(folder.name, status.read_status(folder)) for folder in folders]


def format_status(found: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[str, int]:
    """How each server is doing, and the worst of the codes of `beadwork status`."""
    told = [status.format_status(data, name) for name, data in found]
    return "\n".join(text for text, _ in told), max(code for _, code in told)


def observed(found: Sequence[tuple[str, Mapping[str, Any]]]) -> status.Status:
    """The same as an object."""
    return status.Status(format_status(found)[1], [status.observed(data, name) for name, data in found])
