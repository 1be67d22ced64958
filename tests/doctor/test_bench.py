"""`beadwork bench`: the user's own simulation, undisturbed, and advice that follows from what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from beadwork.config import ModelSettings, ServeConfig
from beadwork.doctor.bench import _elsewhere, bench, format_bench, measured, run, shorten
from beadwork.errors import SimulationError
from beadwork.ipi.simulation import read_simulation
from beadwork.json_form import as_json
from support.json_forms import checked as held

ROOT = Path(__file__).resolve().parents[2]
WATER = ROOT / "inputs" / "water" / "input.xml"
BASELINE = str(ROOT / "models" / "water-revpbe0-d3" / "baseline")


def summary(parts: dict[str, float], evaluations: float = 1.0) -> dict[str, object]:
    """What a run of ten steps of sixteen beads leaves behind."""
    return {
        "steps": 10,
        "structures_evaluated": 160,
        "evaluations_per_step": evaluations,
        "seconds_per_step": sum(parts.values()),
        "seconds_per_step_by_part": parts,
    }


@pytest.mark.parametrize("name", ["water", "water-inet", "water-mts"])
def test_a_shortened_input_is_the_same_simulation(name: str, tmp_path: Path) -> None:
    """Only the number of steps and the addresses differ, so what is measured is what the user runs."""
    simulation = read_simulation(ROOT / "inputs" / name / "input.xml")
    for file in simulation.files:
        (tmp_path / file).write_bytes((simulation.directory / file).read_bytes())
    shorten(simulation, 7, tmp_path / "bench.xml")
    short = read_simulation(tmp_path / "bench.xml")
    assert short.total_steps == simulation.step + 7
    assert [s.batch_size for s in short.sockets] == [s.batch_size for s in simulation.sockets]
    assert [s.latency for s in short.sockets] == [s.latency for s in simulation.sockets]
    assert short.systems[0].forces == simulation.systems[0].forces
    assert short.prefix == "bench"  # one with a path would lead to the outputs of the run itself
    for one, two in zip(short.sockets, simulation.sockets, strict=True):
        assert (one.path, one.port) != (two.path, two.port)


def test_report_adds_up() -> None:
    """Structures a second and ns/day follow from the time a step; every part has its share."""
    found = measured(
        summary({"idle": 0.01, "graph": 0.01, "base (native, float64)": 0.08}),
        read_simulation(WATER),
        ModelSettings(),
        ["a note"],
    )
    text = format_bench(found)
    assert text.startswith("a note\n10 steps, 0.1 s each:")
    assert re.search(r"80\.00 ms +80\.0 % +base \(native, float64\)", text)
    assert "160 structures a second" in text
    assert "0.432 ns/day at 0.5 fs" in text  # 0.5e-6 ns / 0.1 s * 86400 s


@pytest.mark.parametrize(
    ("parts", "evaluations", "more", "word"),
    [
        ({"m (native, float64)": 0.1}, 1.6, {}, "in 1.60 pieces on average"),
        ({"idle": 0.1, "m (native, float64)": 0.1}, 1.0, {}, "50 % of the time is i-PI's"),
        ({"m (torchscript, float64)": 0.1}, 1.0, {}, "as native it would be"),
        ({"m (native, float64)": 0.1}, 1.0, {}, "--dtype float32"),
        ({"m (native, float32)": 0.1, "pack": 0.1}, 1.0, {"member_forces": True}, "without --member-forces"),
    ],
)
def test_advice_follows_from_what_was_measured(
    parts: dict[str, float], evaluations: float, more: dict[str, bool], word: str
) -> None:
    """Each hint comes when its reason is there, and not for a step that has no such reason."""
    found = measured(summary(parts, evaluations), read_simulation(WATER), ModelSettings(), **more)
    assert word in " ".join(found.hints)
    calm = {"idle": 0.01, "m (native, float32)": 0.06, "graph": 0.005}
    found = measured(summary(calm), read_simulation(WATER), ModelSettings(dtype="float32"))
    assert word not in " ".join(found.hints)


def test_real_steps_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of a real simulation are measured, and its folder is left as it was."""
    folder = tmp_path / "run"
    folder.mkdir()
    text = WATER.read_text().replace("'16'", "'2'").replace(">16<", ">2<")
    text = re.sub(r"<trajectory[^>]*extra_type.*?</trajectory>", "", text)
    (folder / "input.xml").write_text(text)
    (folder / "init.xyz").write_bytes((WATER.parent / "init.xyz").read_bytes())
    monkeypatch.chdir(folder)
    config = ServeConfig(simulation="input.xml", baseline=BASELINE, engine="torchscript", threads=1)
    found = bench(config, 3, "one thread")
    said = format_bench(found)
    assert held(as_json(found), "bench")["steps"] == 3
    assert sum(part.share for part in found.parts) == pytest.approx(1.0)
    assert "one thread" in said
    assert re.search(r"\d ms +[\d.]+ %  i-PI and waiting for it", said)
    assert re.search(r"\d ms +[\d.]+ %  \S+ \(torchscript, float64\)", said)
    assert sorted(p.name for p in folder.iterdir()) == ["init.xyz", "input.xml"]


@pytest.mark.parametrize("file", ["../elsewhere.xyz", "absolute"])
def test_structures_beside_the_folder(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start structure that is named by a whole path, or above the input: nothing is written where it would lie."""
    folder, temporary = tmp_path / "runs" / "run", tmp_path / "temporary"
    folder.mkdir(parents=True)
    temporary.mkdir()
    source = tmp_path / "runs" / "elsewhere.xyz"
    source.write_bytes((WATER.parent / "init.xyz").read_bytes())
    text = re.sub(r"<trajectory[^>]*extra_type.*?</trajectory>", "", WATER.read_text())
    text = text.replace("'16'", "'2'").replace(">16<", ">2<")
    (folder / "input.xml").write_text(text.replace("init.xyz", str(source) if file == "absolute" else file))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.chdir(folder)
    config = ServeConfig(simulation="input.xml", baseline=BASELINE, engine="torchscript", threads=1)
    assert bench(config, 2, "one thread").structures_per_second > 0
    assert not list(temporary.iterdir())


def test_what_forcefields_read_is_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An umbrella by PLUMED is measured with its input and with what that names, in a folder of its own, where i-PI did
    not find them."""
    (tmp_path / "plumed.dat").write_text("d: RMSD REFERENCE=ref.pdb # FILE=old.dat\n")
    for name in ("ref.pdb", "old.dat"):
        (tmp_path / name).touch()
    (tmp_path / "init.xyz").write_bytes((WATER.parent / "init.xyz").read_bytes())
    plumed = "<ffplumed name='p'><file mode='xyz'>init.xyz</file></ffplumed><ffsocket"
    (tmp_path / "input.xml").write_text(WATER.read_text().replace("<ffsocket", plumed, 1))
    found: list[str] = []

    def session(*_: object) -> None:
        found.extend(sorted(file.name for file in Path.cwd().iterdir()))
        raise SimulationError("far enough")

    monkeypatch.setattr("beadwork.serve.session.Session", session)
    config = ServeConfig(simulation="input.xml", baseline=BASELINE)
    with pytest.raises(SimulationError, match="far enough"):
        run(config, read_simulation(tmp_path / "input.xml", directory=tmp_path), 3, "", tmp_path / "bench")
    assert found == ["bench.xml", "init.xyz", "plumed.dat", "ref.pdb"]


def test_an_input_that_cannot_run_is_refused(tmp_path: Path) -> None:
    """A missing input ends with the sentence that `serve` has for it."""
    with pytest.raises(SimulationError, match="absent"):
        bench(ServeConfig(simulation=str(tmp_path / "absent.xml"), baseline=BASELINE), 3, "")


def test_models_are_found_from_any_folder() -> None:
    """The copy is run in a folder of its own, where a relative path would name nothing: those of all roles."""
    config = ServeConfig(simulation="x.xml", baseline="a", delta=["b", "c"], also={"dipole": "d"})
    found = _elsewhere(config)
    assert all(Path(path).is_absolute() for path in (found.baseline, *found.delta, *found.also.values()))
