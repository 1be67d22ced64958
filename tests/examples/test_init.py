"""`beadwork init` and `beadwork demo` have what they need, from a checkout and from a wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from beadwork.cli import main
from beadwork.config import resolve
from beadwork.errors import ConfigError
from beadwork.examples.init import FILES, HERE, KINDS, init
from beadwork.ipi.simulation import read_simulation
from beadwork.potential.bundle import CARD, COMMITTEE, HEADS, NOVELTY, check, members_of
from beadwork.potential.bundle import FILES as ENGINE_FILES
from beadwork.toml import read_toml

ROOT = Path(__file__).parents[2]


def found(folder: Path) -> set[Path]:
    """Every file below a folder."""
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def packed() -> set[Path]:
    """Every file of the examples that pyproject.toml puts into a wheel."""
    patterns = read_toml(ROOT / "pyproject.toml")["tool"]["setuptools"]["package-data"]["beadwork.examples"]
    return {path.relative_to(HERE) for pattern in patterns for path in HERE.glob(pattern)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_can_be_run_from(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input, options and models are there, whole and where run.toml says, and no more; and a wheel has it all."""
    listed = init(tmp_path / "mine", kind)
    monkeypatch.chdir(tmp_path / "mine")
    config = resolve({"simulation": "run.toml"})
    simulation = read_simulation(Path(config.simulation))
    assert simulation.systems[0].frame()
    assert config.baseline
    for bundle in (config.baseline, *members_of(config.delta)):
        assert Path(bundle).resolve().is_relative_to(tmp_path / "mine")
        assert check(bundle).native
        assert check(bundle).novelty
    files = found(Path())
    assert {path.name for path in files if path.parts[0] == "models"} <= set(FILES)
    assert {"input.xml", "run.toml", "init.xyz", "README.md", "models"} <= set(listed)
    source = Path("shipped-inputs", KINDS[kind][0])
    wanted = {Path("shipped-models", *path.parts[1:]) if path.parts[0] == "models" else source / path for path in files}
    assert wanted <= packed()


def test_no_file_of_a_bundle_is_left_behind() -> None:
    """What a bundle or a committee can be made of is copied, and is packed into a wheel, whichever files the models
    that are shipped today have: a card that names a file which is not there is refused."""
    of_models = {CARD, *ENGINE_FILES.values(), NOVELTY, HEADS, COMMITTEE}
    assert of_models <= set(FILES)
    patterns = read_toml(ROOT / "pyproject.toml")["tool"]["setuptools"]["package-data"]["beadwork.examples"]
    assert of_models <= {Path(pattern).name for pattern in patterns}


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with something in it, and a file of that name, are left alone; an empty folder may be there."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "input.xml").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name in ("full", "file"):
        for command in ("init", "demo"):
            assert main([command, str(tmp_path / name)]) == ConfigError.exit_code
            assert f"{tmp_path / name} is there already" in capsys.readouterr().err
    assert found(tmp_path) == {Path("full/input.xml"), Path("file")}
    assert main(["init", str(tmp_path / "empty")]) == 0
    assert "beadwork run run.toml" in capsys.readouterr().out
