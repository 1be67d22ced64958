"""Configuration: what may be said, and what is refused with a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from beadwork.config import ServeConfig, read, resolve
from beadwork.errors import ConfigError


def test_toml_and_command_line_join(tmp_path: Path) -> None:
    """Paths of the file count from the file, and what is typed wins."""
    file = tmp_path / "run.toml"
    file.write_text(
        'simulation = "in.xml"\nbaseline = "b"\ndelta = ["d0", "d1"]\nkeep-force = [0.1, 1.0]\npatience = 5\n'
        'queue = "q.db"\nout = "results"\n'
    )
    config = resolve({"simulation": str(file), "keep_force": [0.2]})
    assert config.simulation == str(tmp_path / "in.xml")
    assert config.baseline == str(tmp_path / "b")
    assert config.delta == [str(tmp_path / "d0"), str(tmp_path / "d1")]
    assert (config.queue, config.out) == (str(tmp_path / "q.db"), str(tmp_path / "results"))
    assert (config.keep_force, config.patience) == ([0.2], 5.0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("simulation = ", "cannot read"),
        ("threads = 1" + 5000 * "0", "cannot read"),  # more digits than Python makes an integer of
        ('simulation = "a"\nbaselin = "b"', "'baselin', which is no option; did you mean baseline[?]$"),
        ('simulation = "a"\nbaseline = "b"\ncooldown = "ten"', "wants a whole number"),
        ('simulation = "a"\ndelta = [1]', r"delta is \[1\]; it wants a text, or several"),
        ('simulation = "a"\ndelta = ["b"]\nkeep-force = ["0.05"]', "keep-force is .*; it wants a list of numbers$"),
        ('simulation = "a"\nbaseline = "b"\ndevices = [0, 1]', "it wants a text, or several"),
        ('simulation = "a"\ndelta = ["b"]\nalpha = "2"', "it wants a number"),
        ('simulation = "a"\nbaseline = "b"\nhost = 5', "it wants a text"),
        ('simulation = "a"\nbaseline = "b"\nhost = ["a"]', "it wants a text"),
        ('simulation = "a"\ndelta = ["b"]\nalpha = [1.0, 2.0]', "it wants a number"),
        ('simulation = "a"\ndelta = ["b"]\nbaseline_uncertainty = [0.1]', "it wants a number"),
        ('simulation = "a"\ndelta = ["b"]\nweights = 1.0', "it wants a list"),
        ('simulation = "a"\nbaseline = "b"\ndevice = "gpu"', "it wants cpu or cuda"),
        ('simulation = "a"\nbaseline = "b"\nqueue = 3', "queue is 3; it wants a text"),
        ('simulation = "a"\ndelta = 5', "delta is 5; it wants a text, or several in a list"),
        (
            'simulation = "a"\nnot-periodic = true',
            "sets not-periodic, as it is typed; in a file it is periodic = false$",
        ),
        ('simulation = "a"\nkeep-force = [1.0]\nkeep_force = [2.0]', "keep_force in both spellings"),
        ('simulation = "a"\nkeep_forces = [1.0]', "'keep-forces', which is no option; did you mean keep-force[?]$"),
        (
            'simulation = "a"\nbaseline = "b"\nadd = {d4 = "PBE"}',
            "add has d4, .*total charge; give --charge, also where",
        ),
        ('simulation = "a"', "no model named for .*a; give --baseline, --delta or both, or a TOML file that has them"),
        ('baseline = "a"', "no simulation named"),
        ('simulation = "a"\nbaseline = "b"\nengine = "jax"', "choose from auto, native, torchscript"),
        ('simulation = "a"\nbaseline = "b"\nqueue = "q.db"', "give --delta"),
        ('simulation = "a"\ndelta = ["b"]\nkeep-force = [0.5, 0.1]', "low first"),
        ('simulation = "a"\ndelta = ["b"]\nat = {x = "sum"}', "no --baseline"),
        ('simulation = "a"\nbaseline = "b"\nat = {x = "delta"}', "no --delta"),
        ('simulation = "a"\nbaseline = "b"\npatience = -1', "cannot be negative"),
        ('simulation = "a"\ndelta = ["b"]\nalpha = inf', "alpha is inf; it wants a number from 1e-6 to 1e6"),
        ('simulation = "a"\ndelta = ["b"]\nenergy-alpha = nan', "energy-alpha is nan; it wants a number from 1e-6"),
        ('simulation = "a"\ndelta = ["b"]\nbaseline-uncertainty = 1e-200', "baseline-uncertainty is 1e-200; it wants"),
        ('simulation = "a"\ndelta = ["b"]\nbaseline-uncertainty = 1e200', r"baseline-uncertainty is 1e\+200; it wants"),
        ('simulation = "a"\ndelta = ["b"]\nweights = [1e308, 1e308]', r"numbers from 1e-6 to 1e6, or 0"),
        ('simulation = "a"\nbaseline = "b"\ndevices = ["gpu"]', "'gpu'; it wants cpu, cuda or cuda:N"),
        ('simulation = "a"\nbaseline = "b"\ndevices = ["all", "cpu"]', "all alone"),
        ('simulation = "a"\nbaseline = "b"\ndevices = ["cpu"]\ndevice = "cuda"', "choose one"),
        ('simulation = "a"\nbaseline = "b"\ndevices = ["cpu", "cpu"]\nservers = 1', "each of which is a server"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    """Each wrong setting is one ConfigError that says what to do, before anything is loaded."""
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        resolve({"simulation": str(file)})


def test_spellings_of_a_file(tmp_path: Path) -> None:
    """Names with dashes or underscores, and one committee, or the devices as they are typed, without a list."""
    file = tmp_path / "run.toml"
    found = []
    for text in (
        'keep-force = [0.2]\nmember-forces = true\ndelta = "committee"\ndevices = "cpu,cuda:1"',
        'keep_force = [0.2]\nmember_forces = true\ndelta = ["committee"]\ndevices = ["cpu", "cuda:1"]',
    ):
        file.write_text(f'simulation = "in.xml"\n{text}\n')
        found.append(resolve({"simulation": str(file)}))
    assert found[0] == found[1]
    assert found[0].delta == [str(tmp_path / "committee")]


def test_a_file_is_utf_8_in_any_locale(tmp_path: Path) -> None:
    """A letter beyond ASCII is read where the locale knows none."""
    file = tmp_path / "run.toml"
    file.write_text('simulation = "Å.xml"\nbaseline = "b"\n', encoding="utf-8")
    code = (
        "import sys; from beadwork.config import resolve; print(ascii(resolve({'simulation': sys.argv[1]}).simulation))"
    )
    bare = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    told = subprocess.run([sys.executable, "-c", code, str(file)], env=bare, capture_output=True, text=True)
    assert (told.stdout.strip(), told.stderr) == (ascii(str(tmp_path / "Å.xml")), "")


def test_a_database_is_no_path(tmp_path: Path) -> None:
    """The URL of a queue in a file stays as it is."""
    file = tmp_path / "run.toml"
    file.write_text('simulation = "in.xml"\nbaseline = "b"\ndelta = ["d"]\nqueue = "postgresql://me@host/water"\n')
    assert resolve({"simulation": str(file)}).queue == "postgresql://me@host/water"


def test_defaults_need_only_models() -> None:
    """A simulation and a model are enough."""
    assert resolve({"simulation": "a.xml", "baseline": "b"}) == ServeConfig(simulation="a.xml", baseline="b")


def test_a_name_that_begins_with_a_tilde_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """~ is the home folder; ~water.db, where no user is called so, is a file beside the TOML as ever."""
    monkeypatch.setenv("HOME", "/home/me")
    file = tmp_path / "serve.toml"
    file.write_text("baseline = '~/models/water'\nqueue = '~water.db'\ndelta = ['d', '~nobody-is-called-so/d']\n")
    found = read(file)
    assert found["baseline"] == "/home/me/models/water"
    assert found["queue"] == str(tmp_path / "~water.db")
    assert found["delta"] == [str(tmp_path / "d"), str(tmp_path / "~nobody-is-called-so/d")]
