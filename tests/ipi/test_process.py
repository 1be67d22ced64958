"""What becomes of the i-PI that we have started: waited for, asked, killed. Real i-PI is in end_to_end/."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beadwork.errors import SimulationError
from beadwork.ipi import process as own_ipi
from beadwork.ipi.process import OwnIpi
from beadwork.ipi.simulation import read_simulation

WATER = Path(__file__).parents[2] / "inputs" / "water"

#: seconds that the program gets, twice: until it is asked, and until it is killed
FAREWELL = 0.5
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
ENDS = {
    "by itself": ("print(flush=True); sys.exit(3)", 0, 3, 0.0),
    "killed by somebody": ("print(flush=True); os.kill(os.getpid(), 9)", 0, 128 + signal.SIGKILL, 0.0),
    "when it is asked": ("print(flush=True); time.sleep(600)", 0, 128 + signal.SIGTERM, FAREWELL),
    "when it is killed": (DEAF, 0, 128 + signal.SIGKILL, 2 * FAREWELL),
    "asked at once after a signal": (DEAF, signal.SIGINT, 128 + signal.SIGKILL, FAREWELL),
}


@pytest.mark.parametrize("how", ENDS)
def test_ipi_has_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str) -> None:
    """Whatever i-PI does, it has ended when we have, after the time that it was given; its code is as in a shell, and
    no file EXIT is left for the next one."""
    text, number, code, least = ENDS[how]
    monkeypatch.setattr(own_ipi, "FAREWELL", FAREWELL)
    shutil.copy(WATER / "input.xml", tmp_path)
    shutil.copy(WATER / "init.xyz", tmp_path)
    ours = OwnIpi(read_simulation(tmp_path / "input.xml", directory=tmp_path), None)
    program = [sys.executable, "-c", f"import os, signal, sys, time; {text}"]
    (tmp_path / "EXIT").touch()
    with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it is deaf now, if it is to be
        ours._process = process
        begin = time.monotonic()
        try:
            assert ours.end(lambda: bool(number)) == code
            assert time.monotonic() - begin >= least
            assert process.poll() is not None
        finally:
            process.kill()
    assert not (tmp_path / "EXIT").exists()


def test_plumed_that_does_not_load_is_told_before_ipi_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An input with an <ffplumed> whose file is not there, or where PLUMED's library is missing: a sentence that says
    what to put there or to install, before models are served to an i-PI that ends at once; an input without one asks
    for no PLUMED."""
    monkeypatch.setenv("PLUMED_KERNEL", str(tmp_path / "none.so"))
    shutil.copy(WATER / "init.xyz", tmp_path)
    text = (WATER / "input.xml").read_text()
    (tmp_path / "input.xml").write_text(text)
    with OwnIpi(read_simulation(tmp_path / "input.xml", directory=tmp_path), str(tmp_path / "ipi_")).alone():
        pass
    plumed = "<ffplumed name='p'><file mode='xyz'>init.xyz</file><plumed_dat>plumed.dat</plumed_dat></ffplumed>"
    (tmp_path / "input.xml").write_text(text.replace("<ffsocket", plumed + "<ffsocket", 1))
    ours = OwnIpi(read_simulation(tmp_path / "input.xml", directory=tmp_path), str(tmp_path / "ipi_"))
    with pytest.raises(SimulationError, match=r"has the <plumed_dat> 'plumed.dat', which is no file in"), ours.alone():
        pass
    (tmp_path / "plumed.dat").touch()
    with (
        pytest.raises(SimulationError, match=r"has an <ffplumed>, and PLUMED does not load here: \w+Error"),
        ours.alone(),
    ):
        pass
