"""Training of dipoles and polarizabilities: what is learned, what is refused, errors on frames held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beadwork.cli import main
from beadwork.errors import ConfigError, LabelError
from beadwork.potential.bundle import check
from beadwork.potential.graph import build
from beadwork.potential.load import load
from beadwork.potential.response import ResponseEngine, Role
from beadwork.train.dataset import Dataset, Example, to_atoms
from beadwork.train.label_file import ResponseKeys, from_file
from beadwork.train.member import _options, _write
from beadwork.train.response import _learned, errors_of, train_response
from beadwork.train.settings import TrainSettings
from beadwork.units import BOHR, HARTREE
from support import truth
from support.response import Charges

SMALL = TrainSettings(members=2, epochs=2, hidden_irreps="4x0e+4x1o+4x2e", batch_size=4, r_max=4.0, seed=5)
CHARGES = {1: 0.4, 8: -0.8}


def labelled(count: int = 12, alpha: bool = True, charged: bool = False) -> list[Example]:
    """Clusters of water with the dipoles of fixed charges, and polarizabilities of their bonds."""
    found = []
    for n, frame in enumerate(truth.clusters(count, 1, most=2, charged=charged)):
        example = truth.example(frame, n)
        places = frame.positions
        bonds = (places[:, None] - places[None])[np.linalg.norm(places[:, None] - places[None], axis=2) < 1.2]
        dipole = np.array([CHARGES[int(z)] for z in frame.numbers]) @ places
        tensor = 0.02 * len(places) * np.eye(3) + 0.01 * bonds.T @ bonds if alpha else None
        label = replace(example.label, dipole=dipole, polarizability=tensor)
        found.append(replace(example, label=label, simulation=f"run {n // 2}"))
    return found


def test_errors_are_those_of_the_mean_on_frames_held_out() -> None:
    """Of two models with 1.1 and 0.7 times the charges the mean is 10 % too small: the error is a tenth of the labels'
    own size; polarizabilities likewise, whose size is told without the mean of an atom."""
    examples = labelled()
    members = tuple(Charges({z: f * q for z, q in CHARGES.items()}, a) for f, a in ((1.1, 0.1), (0.7, 0.3)))
    role = Role("dipole", members, np.array([0.5, 0.5]))
    measured = errors_of(examples, role, ("dipole", "polarizability"), 100)
    assert (measured["frames"], measured["blocks"]) == (12, 6)
    own, size = (measured[f"{which}dipole_rmse_e_angstrom"] for which in ("", "labels_"))
    assert own[0] == pytest.approx(0.1 * size[0], abs=2e-6)
    assert own[1] > 0
    tensors = np.array([e.label.polarizability for e in examples])
    error = np.sqrt(((tensors - 0.2 * np.eye(3)) ** 2).mean())
    assert measured["polarizability_rmse_e_angstrom2_per_V"][0] == pytest.approx(error, abs=2e-6)
    atoms = np.array([len(e.frame.numbers) for e in examples])
    each = np.trace(tensors.sum(axis=0)) / 3 / atoms.sum()
    varies = np.sqrt(((tensors - each * atoms[:, None, None] * np.eye(3)) ** 2).mean())
    assert measured["labels_polarizability_rmse_e_angstrom2_per_V"][0] == pytest.approx(varies, abs=2e-6)
    assert errors_of([], role, ("dipole",), 100) == {"frames": 0}


@pytest.mark.parametrize(
    ("change", "settings", "sentence"),
    [
        (lambda e: [replace(x, label=replace(x.label, dipole=None)) for x in e], {}, "12 of 12 labels have no dipole"),
        (
            lambda e: [*e[:-1], replace(e[-1], label=replace(e[-1].label, polarizability=None))],
            {},
            r"1 of 12 labels have no polarizability, the first is row 11",
        ),
        (
            lambda e: e,
            {"hidden_irreps": "16x0e"},
            r"hidden_irreps is 16x0e, and a model of dipole and polarizability has",
        ),
        (lambda e: e, {"trunk": "shared"}, "trunk is shared"),
        (lambda e: labelled(alpha=False), {}, "a model of dipole has 0e, 1o"),
        (
            lambda e: labelled(alpha=False, charged=True),
            {"hidden_irreps": "4x0e+4x1o"},
            r"charge \+1 e and no polarizability.*dipole of an ion moves with it",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, change: Any, settings: dict[str, Any], sentence: str) -> None:
    """Labels without dipoles, or with polarizabilities here and there, settings of no such model, ions for a model
    without charges: before a folder is made."""
    with pytest.raises((LabelError, ConfigError), match=sentence):
        train_response(change(labelled()), tmp_path / "out", replace(SMALL, **settings))
    assert not (tmp_path / "out").exists()


def test_dipoles_of_periodic_frames_are_of_one_branch(tmp_path: Path) -> None:
    """A dipole in a cell is known up to e times cell vectors: one of a frame that is such a quantum off would be
    learned as a jump. Small ones in a large cell cannot be, in a slab only along what is periodic."""
    examples = labelled(4, alpha=False)
    cell = 20.0 * np.array([[1, 0, 0], [0.1, 1, 0], [0, 0, 1]])

    def boxed(example: Example, way: np.ndarray, pbc: tuple[bool, bool, bool]) -> Example:
        label = replace(example.label, dipole=example.label.dipole + way)
        return replace(example, label=label, frame=replace(example.frame, cell=cell, pbc=pbc))

    small = [boxed(e, np.zeros(3), (True, True, True)) for e in examples]
    assert _learned(small) == ("dipole",)
    assert _learned([*small, boxed(examples[0], cell[2], (True, True, False))]) == ("dipole",)
    jumped = boxed(examples[1], cell[1], (True, True, False))
    with pytest.raises(
        LabelError, match=r"row 1 of test is periodic, and its dipole is (0\.9|1\.0)\d of e times a cell"
    ):
        train_response([*small, jumped], tmp_path / "out", replace(SMALL, hidden_irreps="4x0e+4x1o"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("learns", [("dipole",), ("dipole", "polarizability")])
def test_mace_is_told_what_to_learn(tmp_path: Path, learns: Sequence[str]) -> None:
    """Its command line is one that mace knows, with the class and the loss of what is learned; it reads the labels of a
    frame in e Å and Å³, the charge besides, and no energy."""
    import ase.io
    from mace.data.utils import KeySpecification, config_from_atoms, update_keyspec_from_kwargs
    from mace.tools.arg_parser import build_default_arg_parser

    (example,) = labelled(1)
    plan = {"learns": list(learns), "elements": [1, 8], "weights": dict.fromkeys(learns, 2.0)}
    options = build_default_arg_parser().parse_args(_options(tmp_path, SMALL, plan, 10, 0))
    both = len(learns) == 2
    assert (options.model, options.loss) == (
        ("AtomicDielectricMACE", "dipole_polar") if both else ("AtomicDipolesMACE", "dipole")
    )
    assert options.dipole_weight == 2.0
    assert options.MLP_irreps == ("4x0e+4x1o+4x2e" if both else "4x1o")
    assert not options.swa
    _write(tmp_path / "one.extxyz", [example], SMALL, learns)
    keys = update_keyspec_from_kwargs(KeySpecification.from_defaults(), vars(options))
    read = config_from_atoms(ase.io.read(tmp_path / "one.extxyz"), key_specification=keys)
    assert example.label.dipole is not None
    assert example.label.polarizability is not None
    np.testing.assert_allclose(read.properties["dipole"], example.label.dipole, atol=1e-7)
    if both:
        volume = example.label.polarizability * HARTREE * BOHR
        np.testing.assert_allclose(np.reshape(read.properties["polarizability"], (3, 3)), volume, atol=1e-6)
    assert read.property_weights["energy"] == read.property_weights["forces"] == 0
    assert read.properties["total_charge"] == 0


def test_files_of_others_are_read_in_their_units(tmp_path: Path) -> None:
    """A file with `dipole` in Debye (which ASE moves to a calculator) and nine numbers of a polarizability in Å³; a
    dipole of two numbers is refused by its frame; without --as-dipole none is read, so that hashes stay."""
    import ase.io

    examples = labelled(3)
    frames = [to_atoms(e) for e in examples]
    for atoms in frames:
        atoms.info["dipole"] = atoms.info.pop("REF_dipole") / 0.20819433
        atoms.info["alpha"] = (atoms.info.pop("REF_polarizability") * HARTREE * BOHR).ravel()
    file = tmp_path / "labels.extxyz"
    ase.io.write(file, frames, format="extxyz")
    keys = ResponseKeys("dipole", "alpha", "debye", "ang3")
    for e, example in zip(from_file(file, None, None, response=keys), examples, strict=True):
        np.testing.assert_allclose(e.label.dipole, example.label.dipole, atol=1e-6)
        np.testing.assert_allclose(e.label.polarizability, example.label.polarizability, atol=1e-6)
    assert all(e.label.dipole is None for e in from_file(file, None, None))
    frames[1].info["alpha"] = [1.0, 2.0]
    ase.io.write(file, frames, format="extxyz")
    with pytest.raises(LabelError, match=r"frame 1 of .*: alpha is '1\.0 2\.0'; a polarizability is 9 numbers"):
        from_file(file, None, None, response=keys)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_committee_learns_and_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command, real mace: two members learn dipoles and polarizabilities of a file to a third of their size, the
    folder is taken as a role, its answers have the units of the labels, and the same command again trains nothing."""
    import ase.io

    file, out = tmp_path / "labels.extxyz", tmp_path / "out"
    examples = labelled(40)
    ase.io.write(file, [to_atoms(e) for e in examples], format="extxyz")
    settings = {"members": 2, "epochs": 20, "hidden_irreps": "4x0e+4x1o+4x2e", "r_max": 3.0}
    (tmp_path / "train.toml").write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items()))
    command = ["train", str(file), "--as-dipole", "--out", str(out), "--settings", str(tmp_path / "train.toml")]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "root mean square errors on" in told
    assert "40 labels, of dipoles and polarizabilities; " in told
    paths = [out / "dipole-0", out / "dipole-1"]
    role = Role("dipole", tuple(ResponseEngine(check(path), "dipole") for path in paths), np.array([0.5, 0.5]))
    dataset = Dataset.read(out)
    learns = ("dipole", "polarizability")
    measured = errors_of(dataset.testing, role, learns, 100)
    print(measured)
    assert measured == {**check(paths[0]).about, **_card(out)}["held_out"]
    for key in ("dipole_rmse_e_angstrom", "polarizability_rmse_e_angstrom2_per_V"):
        assert measured[key][0] < measured[f"labels_{key}"][0] / 3
    mean = role.combine([engine.evaluate(build([examples[0].frame], 3.0)) for engine in role.engines])
    assert mean["dipole"].spread is not None
    assert mean["dipole"].spread[0] > 0
    water = truth.BASELINE
    answer = load(water, also={"dipole": out}, charge=0).evaluate([examples[0].frame]).response
    np.testing.assert_allclose(answer["dipole"].mean, mean["dipole"].mean, atol=1e-9)
    assert main(command) == 0
    assert "2 of 2 members" in capsys.readouterr().out


def _card(folder: Path) -> dict[str, Any]:
    from beadwork.toml import tomllib

    return tomllib.loads((folder / "committee.toml").read_text(encoding="utf-8"))
