from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest

from beadwork.errors import LabelError, ModelError
from beadwork.frame import Frame
from beadwork.harvest.queue import Queue
from beadwork.harvest.row import KeptFrame
from beadwork.label.label import Label
from beadwork.potential import bundle
from beadwork.potential.additions import open_additions
from beadwork.potential.graph import build
from beadwork.potential.potential import Potential
from beadwork.potential.torchscript import TorchScriptEngine
from beadwork.train import calibration, dataset, plan
from beadwork.train.committee import added
from beadwork.train.dataset import (
    Dataset,
    check,
    difference,
    from_queue,
    once,
    reference_energies,
)
from beadwork.train.divide import _dataset
from beadwork.train.duplicates import among, firsts
from beadwork.train.settings import TrainSettings
from beadwork.train.split import APART, split
from support import truth
from support.charges import Charged


@pytest.fixture
def examples():
    """Forty clusters, some with a proton too much; energies with a declared error."""
    return [truth.example(f, n, energy_noise=0.01) for n, f in enumerate(truth.clusters(40, 1, charged=True))]


def with_label(example, **changes):
    """The same example with a changed label."""
    return replace(example, label=replace(example.label, **changes))


def test_difference_is_label_minus_the_baseline_that_serves(examples):
    """Δ + baseline is the label again, with the reference engine evaluated here by itself."""
    found = difference(examples, truth.BASELINE)
    engine = TorchScriptEngine(bundle.check(truth.BASELINE))
    for e in found[:7]:
        alone = engine.evaluate(build([e.frame], engine.cutoff))
        assert e.energy + alone.energies[0] == pytest.approx(e.label.energy, abs=1e-5)
        assert np.allclose(e.forces + alone.forces, e.label.forces, atol=1e-5)


@pytest.fixture
def answer(examples, monkeypatch):
    """A baseline that answers each example's own energy and forces, but for a part of each that it does not know."""
    rng = np.random.default_rng(7)
    known = {e.frame.positions.tobytes(): (e.label.energy, e.label.forces) for e in examples}

    def evaluate(frames):
        energies, forces = zip(*(known[f.positions.tobytes()] for f in frames), strict=True)
        force = np.concatenate(forces)
        return SimpleNamespace(
            energies=np.array(energies) + rng.normal(0, 0.01, len(frames)),
            forces=force + rng.normal(0, 0.03, force.shape),
            ptr=np.cumsum([0, *map(len, forces)]),
        )

    nothing = SimpleNamespace(evaluate=evaluate, check_species=lambda _: None, select_backends=lambda _: None)
    nothing.baseline, nothing.additions = None, ()
    monkeypatch.setattr(dataset, "load", lambda _, **__: nothing)
    monkeypatch.setattr(dataset, "load_card", lambda _: SimpleNamespace(hash="sha256:b"))


@pytest.mark.parametrize(
    ("times", "count", "said"),
    [
        (23.0605, 8, ", as forces in kcal/mol/angstrom would be"),
        (0.019447, 8, ", as forces in hartree/bohr would be"),
        (0.52918, 8, ", as forces in ev/bohr would be"),
        (1000.0, 8, ", as forces in mev/angstrom would be"),
        (964.85, 8, ", as forces in kj/mol/nm would be"),
        (10.0, 8, ", as forces in ev/nm would be"),
        (-1.0, 8, ", as gradients would be"),
        (5.0, 12, ""),
        (0.2, 12, ""),
        (5.0, 8, None),  # few structures near a minimum may have it
        (1.0, 12, None),
        (0.8, 12, None),
        (1.5, 12, None),
        (2.5, 12, None),
    ],
)
def test_forces_in_another_unit_are_refused(examples, answer, times, count, said):
    """Labels that are the baseline's forces but for a unit, the sign, or a factor that no baseline explains: a file of
    kcal/mol reads as well as any. Labels of another method are the baseline's but for some percent, and pass."""
    found = [with_label(e, forces=times * e.label.forces, forces_error=None) for e in examples[:count]]
    if said is None:
        assert len(difference(found, Path("baseline"))) == count
        return
    with pytest.raises(LabelError) as error:
        difference(found, Path("baseline"))
    told = re.fullmatch(
        rf"the labels: the labels' forces are (\S+) times the baseline's{said}; give .* eV/Å", str(error.value)
    )
    assert float(told[1]) == pytest.approx(times, rel=0.05)


@pytest.mark.parametrize("forces", [True, False])
@pytest.mark.parametrize(
    ("times", "noise", "count", "said"),
    [
        (1 / 27.211386, 0.0, 40, ", as energies in hartree would be"),
        (1 / 27.211386, 0.02, 40, ", as energies in hartree would be"),
        (23.0605, 0.0, 40, ", as energies in kcal/mol would be"),
        (96.485, 0.0, 40, ", as energies in kj/mol would be"),
        (1000.0, 0.0, 40, ", as energies in mev would be"),
        (-1.0, 0.0, 40, ", as energies of the other sign would be"),
        (7.0, 0.0, 40, ""),
        (1 / 27.211386, 20.0, 40, None),  # nothing can be told
        (1 / 27.211386, 0.0, 10, None),  # of several compositions: too few to tell
        (1.0, 0.0, 40, None),
        (1.0, 0.5, 40, None),
        (1.0, 50.0, 40, None),
        (0.7, 0.1, 40, None),
        (2.5, 0.0, 40, None),
    ],
)
def test_energies_in_another_unit_are_refused(examples, answer, times, noise, count, said, forces):
    """Energies in Hartree make a Δ of minus the baseline. They are told by their changes within a composition, whatever
    the zero of each atom; noise that hides the changes refuses nothing, and right forces save no wrong energies."""
    rng = np.random.default_rng(3)
    found = [
        with_label(
            e,
            energy=times * (e.label.energy + 1000.0 * len(e.frame.numbers) + noise * rng.normal()),
            energy_error=times * noise if times > 0 else 0.0,
            forces=e.label.forces if forces else None,
            forces_error=None,
        )
        for e in examples[:count]
    ]
    if said is None:
        assert len(difference(found, Path("baseline"))) == count
        return
    with pytest.raises(LabelError) as error:
        difference(found, Path("baseline"))
    told = re.fullmatch(
        rf"the labels: the labels' energies are (\S+) times the baseline's{said}; give .* eV", str(error.value)
    )
    assert float(told[1]) == pytest.approx(times, rel=0.05)


def test_a_baseline_is_told_charge_and_spin_of_the_label(examples, tmp_path: Path, monkeypatch):
    """What a label was computed with is what baseline and Δ are evaluated with, in difference, residuals and plan, and
    after the dataset's file; a spin that a file does not know is not told as 0 to an odd number of electrons."""
    labelled = [e for e in examples if e.label.forces is not None][:12]
    told = [(e.label.charge, e.label.spin) for e in labelled]
    assert {charge for charge, _ in told} == {0, 1}
    engine = Charged(0.0)
    monkeypatch.setattr(dataset, "load", lambda _, **__: Potential(engine))
    monkeypatch.setattr(dataset, "load_card", lambda _: SimpleNamespace(hash="sha256:b"))
    bare = [replace(e, frame=replace(e.frame, charge=None, spin=None)) for e in labelled]
    found = difference(bare, Path("baseline"))
    assert engine.told == [tuple(told)]
    assert [e.label.energy - e.energy for e in found] == pytest.approx([charge for charge, _ in told])
    Dataset(tuple(found), (False,) * len(found)).write(tmp_path)
    back = Dataset.read(tmp_path)
    engine.told.clear()
    monkeypatch.setattr(calibration, "load", lambda *_, **__: Potential(engine))
    calibration.residuals(back.examples, [Path("delta")], dict.fromkeys((1, 8), 0.0), APART)
    assert engine.told == [tuple(told)]
    monkeypatch.setattr(plan, "load", lambda *_: Potential(engine))
    monkeypatch.setattr(plan, "_old_energies", lambda *_: {1: 0.0, 8: 0.0})
    with pytest.raises(ModelError):  # no bundle for the card, which is read after the evaluation
        plan.make_plan(back, TrainSettings(), [tmp_path / "delta"])
    assert engine.told == [tuple(told)] * 2
    radical = Frame(np.array([1]), np.zeros((1, 3)), np.zeros((3, 3)), (False,) * 3)
    assert replace(labelled[0], frame=radical, label=replace(labelled[0].label, charge=0)).frame.spin is None


def test_what_is_added_by_formula_is_not_learned(examples, tmp_path: Path, monkeypatch):
    """Labels less the addition, of a baseline; of a Δ the baseline is opened with it. The dataset's file and hash and
    the card have it, and two datasets with another one do not mix."""
    add = {"zbl": "1.5"}
    engine = open_additions(add, [1, 8])[0]
    plain, less = difference(examples, None), difference(examples, None, add=add)
    for one, two in zip(plain, less, strict=True):
        alone = engine.evaluate(build([one.frame], engine.cutoff))
        assert one.energy - two.energy == pytest.approx(alone.energies[0])
        assert one.energy != two.energy
        if one.forces is not None:
            assert one.forces - two.forces == pytest.approx(alone.forces)
    whole, part = (Dataset(tuple(some), (False,) * len(some)) for some in (plain, less))
    assert whole.hash != part.hash
    part.write(tmp_path)
    assert Dataset.read(tmp_path).add == add
    assert (added(whole), added(part)) == ({}, {"add": add})
    with pytest.raises(LabelError, match=r"2 sums of additions \(--add\) \(nothing; zbl=1.5\)"):
        check([plain[0], *less[1:]])
    opened = []
    monkeypatch.setattr(dataset, "load", lambda _, add: opened.append(add) or Potential(Charged(0.0)))
    monkeypatch.setattr(dataset, "load_card", lambda _: SimpleNamespace(hash="sha256:b"))
    assert {tuple(e.add) for e in difference(examples, Path("baseline"), add=add)} == {("zbl",)}
    assert opened == [add]


def test_labels_learned_without_a_baseline_stay_as_they_are(examples):
    """A baseline model is trained on labels, not on differences."""
    for e in difference(examples, None):
        assert e.energy == e.label.energy
        assert e.baseline is None


def test_methods_never_mix(examples):
    """Two levels of theory in one dataset are refused by name, and so are two baselines."""
    other = with_label(examples[0], method="CCSD/cc-pVDZ")
    with pytest.raises(LabelError, match=r"CCSD/cc-pVDZ; pair potential.*--method"):
        check([*examples[1:], other])
    with pytest.raises(LabelError, match="baselines"):
        check([*examples[1:], replace(examples[0], baseline="sha256:0")])


def test_charges_of_one_composition_are_told_apart_or_refused(examples):
    """A MACE model sees no charge: H2O and H2O+ must not be learned together."""
    with pytest.raises(LabelError, match="was labelled with charge 0, spin 0 and with charge 1, spin 1; a MACE model"):
        check([*examples, with_label(examples[1], charge=1, spin=1, energy=0.0)])


def test_a_label_that_is_there_already_counts_once(examples, caplog):
    """A copy, wherever its structure was shifted to, and an energy alone beside energy and forces: the sentence counts
    them. A second measurement of a noisy method is one more."""
    caplog.set_level(logging.INFO, "beadwork")
    exact = with_label(truth.example(truth.clusters(1, 5)[0], 50), energy_error=0.0, extra={"frame": 50})
    moved = replace(exact, row=51, frame=replace(exact.frame, positions=exact.frame.positions + 3.0))
    moved = with_label(moved, energy=exact.label.energy + 1e-5, extra={"frame": 51})
    bare = replace(with_label(exact, forces=None), row=49)
    assert [e.row for e in difference([examples[0], bare, exact, moved], None)] == [0, 50]
    assert (
        "the labels: 2 labels are there already, and count once (that of row 49 of test is that of row 50 of test)"
        in (caplog.messages)
    )
    noisy = [with_label(exact, energy=exact.label.energy + shift, energy_error=0.01) for shift in (0.0, 0.012, 0.012)]
    assert [e.energy for e in difference(noisy, None)] == [e.label.energy for e in noisy[:2]]
    with pytest.raises(LabelError, match="twice"):
        Dataset((*examples, examples[3]), (False,) * 41)


def test_labels_of_one_structure_that_contradict_each_other_are_refused(examples):
    """Beyond their errors, in energy or in forces, both by name; as far as structures that count as equal may differ,
    they do not, and noise with long tails is noise."""
    exact = [with_label(truth.example(f, n), energy_error=0.0) for n, f in enumerate(truth.clusters(3, 5))]
    last = exact[-1]
    energy, forces = last.label.energy, last.label.forces

    def beside(moved: float = 0.0, **changes):
        positions = last.frame.positions.copy()
        positions[0, 0] += moved
        return [*exact, with_label(replace(last, row=9, frame=replace(last.frame, positions=positions)), **changes)]

    said = "row 2 of test and row 9 of test are one structure, and their labels have "
    with pytest.raises(LabelError, match=said + r"energies of -?[\d.]+ and -?[\d.]+ eV; remove the wrong one"):
        difference(beside(energy=energy + 0.05), None)
    with pytest.raises(LabelError, match=said + "forces that differ by up to 2.000 eV/Å"):
        difference(beside(forces=forces + 2.0 * np.eye(len(forces), 3)), None)
    # 8e-4 Å from it, at 10 eV/Å
    assert len(difference(beside(8e-4, energy=energy + 0.008), None)) == 3
    assert len(difference(beside(2e-3, energy=energy + 0.05), None)) == 4
    errors = np.full(forces.shape, 0.1)
    tail = np.zeros_like(forces)
    tail[0, 0] = 1.0
    assert (
        len(
            difference(beside(energy=energy + 0.05, energy_error=0.02, forces=forces + tail, forces_error=errors), None)
        )
        == 4
    )
    with pytest.raises(LabelError, match=said):
        difference(beside(energy=energy + 0.2, energy_error=0.02), None)


@pytest.mark.parametrize("sign", [1, -1], ids=["turned", "mirrored"])
def test_dipoles_and_polarizabilities_of_one_structure_that_contradict_are_refused(examples, sign):
    """Of an ion that another program has moved and turned, the dipole about the origin and the polarizability go with
    it; the same numbers in debye, or in Bohr³, contradict, and the sentence has both. In a cell dipoles count up to e
    times its vectors."""
    ion = with_label(truth.example(truth.clusters(1, 5)[0], 50), energy_error=0.0, forces=None, charge=1, spin=0)
    alpha = np.array([[0.10, 0.01, 0.0], [0.01, 0.08, 0.02], [0.0, 0.02, 0.12]])
    mu = np.array([0.24, 0.31, 0.0])
    turned = sign * np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    away = np.array([3.0, -2.0, 5.0])
    one = with_label(ion, dipole=mu, polarizability=alpha)
    moved = replace(one, row=51, frame=replace(ion.frame, positions=ion.frame.positions @ turned + away))
    other = with_label(moved, dipole=mu @ turned + away, polarizability=turned.T @ alpha @ turned)
    assert once([one, other], "all") == [one]
    said = "row 50 of test and row 51 of test are one structure, and their labels have "
    with pytest.raises(LabelError, match=said + r"dipoles of [\d.]+ and [\d.]+ e Å that are 6.1644 e Å apart"):
        once([one, with_label(other, dipole=mu @ turned)], "all")  # about another origin
    with pytest.raises(LabelError, match=said + r"polarizabilities \(a third of the trace 0.1000 and 1.4400\)"):
        once([one, with_label(other, polarizability=14.4 * other.label.polarizability)], "all")
    water = with_label(one, charge=0)
    debye = with_label(replace(water, row=51), dipole=4.8032 * mu)
    with pytest.raises(LabelError, match=said + r"dipoles of 0.3920 and 1.8831 e Å that are 1.4910 e Å apart"):
        once([water, debye], "all")
    cell = np.array([[12.0, 0, 0], [1, 12, 0], [0, 2, 12]])
    box = replace(water, frame=replace(water.frame, cell=cell, pbc=(True,) * 3))
    for way, kept in ((cell[1] - cell[2], 1), (cell[1] / 2, None)):
        pair = [box, with_label(replace(box, row=51), dipole=mu + way)]
        if kept:
            assert len(once(pair, "all")) == kept
        else:
            with pytest.raises(LabelError, match=said + "dipoles"):
                once(pair, "all")


def test_forces_of_another_frame_are_refused(examples):
    """A label of a cut cluster without its structure is seen."""
    with pytest.raises(LabelError, match="structure that was computed"):
        check([replace(examples[0], frame=examples[1].frame)])
    with pytest.raises(LabelError, match="label frames first"):
        check([])


def test_element_that_the_baseline_lacks(examples):
    """The model and the element are named, before anything is trained."""
    numbers = np.array([3, *examples[0].frame.numbers[1:]])
    with pytest.raises(ModelError, match=r"row 0 of test: .*Li"):
        difference([replace(examples[0], frame=replace(examples[0].frame, numbers=numbers))], truth.BASELINE)


def test_structure_that_no_model_can_answer_for_is_named(examples):
    """Atoms on top of each other, a periodic frame without a cell and a NaN are named by row, before anything is
    trained, with or without a baseline; the advice is not that of a run, whose options training has not."""
    frame = examples[3].frame
    on_top = frame.positions.copy()
    on_top[1] = on_top[0] + 0.05
    lost = frame.positions.copy()
    lost[2, 1] = np.nan
    for bad, said in (
        (replace(frame, positions=on_top), r"row 3 of test: atoms 0 and 1 of the structure are 0.087 Å apart"),
        (replace(frame, positions=lost), r"row 3 of test: atom 2 is at \[.*nan"),
        (replace(frame, pbc=(True,) * 3), "row 3 of test: the cell has no volume"),
    ):
        several = [*examples[:3], replace(examples[3], frame=bad), *examples[4:]]
        for baseline in (None, truth.BASELINE):
            with pytest.raises(LabelError, match=said) as error:
                difference(several, baseline)
            assert error.value.remedy == "correct it, or remove it"
            assert "--not-periodic" not in str(error.value)


def test_engine_is_settled_on_the_largest_frame(examples, monkeypatch):
    """A lone atom in front would let any engine pass: the one with which labels are compared is the largest frame."""
    seen = []
    monkeypatch.setattr(
        "beadwork.potential.potential.Potential.select_backends", lambda self, frame: seen.append(frame) or []
    )
    atom = Frame(np.array([1]), np.zeros((1, 3)), np.zeros((3, 3)), (False,) * 3)
    difference([replace(with_label(examples[0], forces=None, charge=0), frame=atom), *examples], truth.BASELINE)
    assert len(seen[0].numbers) == max(len(e.frame.numbers) for e in examples)


def test_isolated_atoms_are_told_from_crystals(examples):
    """One atom alone, in vacuum or in a box of its own, is no structure; one of a crystal's cell, and a pair, are."""

    def one(numbers, cell, pbc, apart=0.0):
        positions = np.zeros((len(numbers), 3)) + apart * np.arange(len(numbers))[:, None]
        return replace(examples[0], frame=Frame(np.array(numbers), positions, np.array(cell), (pbc,) * 3))

    assert one([8], np.zeros((3, 3)), False).isolated
    assert one([8], np.eye(3) * 10, True).isolated
    assert not one([29], np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) * 1.8, True).isolated
    # a skew box: its vectors are long, the difference of two is not
    assert not one([29], np.array([[10, 0, 0], [10, 2.5, 0], [0, 0, 10]]), True).isolated
    assert not one([1, 1], np.zeros((3, 3)), False, 9.0).isolated


def test_dataset_survives_its_file(examples, tmp_path: Path):
    """Every number, error and origin comes back exactly, and the hash with them."""
    dataset = Dataset(tuple(examples), split(examples, 0.25, 3))
    dataset.write(tmp_path)
    back = Dataset.read(tmp_path)
    assert back.hash == dataset.hash
    assert back.held_out == dataset.held_out
    for one, two in zip(dataset.examples, back.examples, strict=True):
        assert one.hash == two.hash
        assert (one.energy, one.source, one.row, one.baseline) == (two.energy, two.source, two.row, two.baseline)
        assert np.array_equal(one.forces, two.forces)
        assert one.label.input == two.label.input


def test_changed_dataset_is_noticed(examples, tmp_path: Path):
    """A label that was edited does not pass for the one that the models' cards name."""
    Dataset(tuple(examples), split(examples, 0.25, 3)).write(tmp_path)
    file = tmp_path / "dataset.json"
    data = json.loads(file.read_text())
    data["frames"][5]["label"]["energy"] += 1e-3
    file.write_text(json.dumps(data))
    with pytest.raises(LabelError, match="changed"):
        Dataset.read(tmp_path)
    data["frames"][5]["positions"] = "gone"
    file.write_text(json.dumps(data))
    with pytest.raises(LabelError, match="cannot be read"):
        Dataset.read(tmp_path)
    with pytest.raises(LabelError, match="missing"):
        Dataset.read(tmp_path / "nowhere")


def test_the_same_structure_whoever_wrote_it(examples, tmp_path):
    """Rounded as files round, shifted, with a cell that means nothing, or another charge in its label: the same. A
    step of a simulation, other atoms, and another periodic cell are not."""
    frames = [e.frame for e in examples]
    ase.io.write(tmp_path / "all.xyz", [f.to_atoms() for f in frames], format="xyz")
    read = [Frame.from_atoms(atoms) for atoms in ase.io.read(tmp_path / "all.xyz", ":")]
    assert among(read, frames) == [True] * len(frames)
    shifted = [replace(f, positions=f.positions + 5.0, cell=np.eye(3) * 9.0) for f in frames]
    assert firsts([*frames, *shifted]) == 2 * list(range(len(frames)))
    rng = np.random.default_rng(0)
    moved = [replace(f, positions=f.positions + rng.normal(0, 0.01, f.positions.shape)) for f in frames]
    assert not any(among(moved, frames))
    boxes = [replace(frames[0], cell=np.eye(3) * side, pbc=(True,) * 3) for side in (9.0, 9.1)]
    assert firsts([frames[0], *boxes]) == [0, 1, 2]


@pytest.mark.parametrize("pbc", [(True,) * 3, (True, True, False)], ids=["bulk", "slab"])
def test_a_frame_folded_into_its_cell_is_the_same_structure(examples, pbc):
    """Other codes write atoms back in other images: that is no other structure, turned too, and with an atom half a
    cell from the first, whose nearest image is a matter of rounding; two labels of it that differ contradict."""
    rng = np.random.default_rng(1)
    cell = np.array([[9.0, 0, 0], [1, 9, 0], [0, 2, 9]])
    grid = np.stack(np.meshgrid(*[[0, 0.5]] * 3), axis=-1).reshape(-1, 3)
    noise = rng.normal(size=(3, 8, 3)) * 0.4
    noise[0] = 0
    frames = [Frame(np.full(8, 8), grid @ cell + one - [2, 1, 0], cell, pbc) for one in noise]
    images = rng.integers(-2, 3, size=(3, 8, 3)) * np.array(pbc)
    folded = [
        replace(f, positions=(f.positions + at @ cell + rng.uniform(-4e-4, 4e-4, (8, 3)) + 7.0))
        for f, at in zip(frames, images, strict=True)
    ]
    turned = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    at_angle = [
        replace(f, positions=(f.positions + at @ cell) @ turned, cell=cell @ turned)
        for f, at in zip(frames[1:], images, strict=False)
    ]
    assert firsts([*frames, *folded, *at_angle]) == [0, 1, 2, 0, 1, 2, 1, 2]
    moved = replace(folded[1], positions=folded[1].positions + 0.01 * np.eye(8, 3))
    assert firsts([frames[1], moved]) == [0, 1]
    label = replace(examples[0].label, energy=-3.0, energy_error=0.0, forces=None, forces_error=None)
    pair = [replace(examples[0], frame=f, label=label, row=k) for k, f in enumerate((frames[1], folded[1]))]
    assert len(once(pair, "the labels")) == 1
    pair[1] = replace(pair[1], label=replace(label, energy=2.0))
    with pytest.raises(LabelError, match=r"are one structure, and their labels have energies of -3.0000 and 2.0000 eV"):
        once(pair, "the labels")


@pytest.mark.parametrize("sign", [1, -1], ids=["turned", "mirrored"])
def test_a_turned_copy_is_the_same_structure(examples, sign):
    """Another program puts a structure into its own orientation, with five digits: it is no test of what was learned,
    and its label, forces turned with it, counts once; with forces that were not turned it contradicts."""
    turned = sign * np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    ring = [e for e in examples if e.label.forces is not None and len(e.frame.numbers) > 2][:6]
    frames = [e.frame for e in ring]
    copies = [replace(f, positions=(f.positions @ turned + 3.0).round(5)) for f in frames]
    assert firsts([*frames, *copies]) == 2 * list(range(6))
    boxes = [replace(f, cell=np.diag([9.0, 10.0, 11.0]), pbc=(True,) * 3) for f in frames[:2]]
    crystals = [replace(f, positions=f.positions @ turned, cell=f.cell @ turned) for f in boxes]
    assert firsts([*boxes, *crystals, replace(crystals[0], cell=boxes[0].cell)]) == [0, 1, 0, 1, 4]
    exact = [with_label(e, energy_error=0.0, forces_error=None) for e in ring]
    again = [
        replace(with_label(e, forces=e.label.forces @ turned), frame=copy, row=100 + e.row)
        for e, copy in zip(exact, copies, strict=True)
    ]
    assert [e.row for e in difference([*exact, *again], None)] == [e.row for e in exact]
    wrong = replace(exact[0], frame=copies[0], row=100)
    with pytest.raises(LabelError, match=r"are one structure, and their labels have forces that differ"):
        difference([exact[0], wrong], None)


def test_what_earlier_generations_learned_is_known(examples, tmp_path):
    """gen-1 of one set, gen-2 of another from its weights, gen-3 of both: no frame that gen-1 learned is a test, none
    that it held out is learned, and validate calls none of them unseen."""
    first, second, new = examples[:15], examples[15:30], examples[30:]
    settings = TrainSettings(held_out=0.4)
    one = _dataset(first, settings, None)
    one.write(tmp_path / "1")
    two = _dataset(second, settings, tmp_path / "1")
    two.write(tmp_path / "2")
    assert Dataset.read(tmp_path / "2").hash == two.hash
    assert {True, False} == {met.held_out for met in two.before}
    assert sum(among([e.frame for e in first], Dataset.read(tmp_path / "2").learned)) == one.held_out.count(False)
    three = _dataset([*new, *first, *second], settings, tmp_path / "2")
    assert three.held_out[len(new) :] == one.held_out + two.held_out
    assert three.before == ()


@pytest.mark.parametrize(
    ("symbols", "charge", "solute"),
    [
        ("H2O", 0, "water"),
        ("H6O3", 0, "water"),
        ("H3O", 1, "H +1"),
        ("H5O2", 1, "H +1"),
        ("H4O", 0, "H2"),
        ("HO", -1, "H-1 -1"),
        ("H3O2", -1, "H-1 -1"),
        ("H2", 0, "H2"),
        ("LiH4O2", 1, "Li +1"),
    ],
)
def test_solutes_are_told_from_the_formula(examples, symbols, charge, solute):
    """Hold-out is by solute too: a protonated cluster of any size is one kind."""
    import ase

    atoms = ase.Atoms(symbols, positions=np.zeros((len(ase.Atoms(symbols)), 3)))
    e = replace(with_label(examples[0], charge=charge), frame=Frame.from_atoms(atoms))
    assert e.solute == solute


def test_reference_energies_are_the_constants_of_the_truth(examples):
    """Exact labels that are sums over atoms give these sums back; noisy ones count less."""
    energies = np.array([sum(truth.ATOMS[int(z)] for z in e.frame.numbers) for e in examples])
    found, open_ = reference_energies(examples, energies, 0.001)
    assert found == pytest.approx(truth.ATOMS, abs=1e-9)
    assert not open_
    energies[1::2] += 5.0
    noisy = [with_label(e, energy_error=1e3 if n % 2 else 0.0) for n, e in enumerate(examples)]
    found, _ = reference_energies(noisy, energies, 0.001)
    assert found == pytest.approx(truth.ATOMS, abs=1e-4)


def test_reference_energies_that_cannot_be_told_are_said(examples):
    """Water alone cannot tell hydrogen from oxygen; the sum over a molecule is right all the same."""
    water = [e for e in examples if e.solute == "water"]
    energies = np.array([sum(truth.ATOMS[int(z)] for z in e.frame.numbers) for e in water])
    found, open_ = reference_energies(water, energies, 0.001)
    assert "rank 1" in open_
    assert 2 * found[1] + found[8] == pytest.approx(2 * truth.ATOMS[1] + truth.ATOMS[8], abs=1e-9)


def test_queue_to_examples(examples, tmp_path: Path):
    """Labelled rows become examples, of the structure that was computed where one was cut out of the frame."""
    queue = Queue(tmp_path / "q.db", create=True)
    for e in examples[:4]:
        n = len(e.frame.numbers)
        queue.add(KeptFrame(e.frame, 1, 0.1, np.ones(n), np.zeros(2), ("sha256:1", "sha256:2"), "sha256:3"))
    with pytest.raises(LabelError, match="no labels"):
        from_queue(queue, None)
    rows = queue.rows()
    for row, e in list(zip(rows, examples, strict=False))[:2]:
        queue.claim("me", 60, row.id)
        queue.finish(row.id, "me", e.label.to_dict())
    small = examples[9].frame
    queue.claim("me", 60, rows[2].id)
    cut = {"numbers": small.numbers, "positions": small.positions, "cell": small.cell, "pbc": list(small.pbc)}
    queue.finish(rows[2].id, "me", {**examples[9].label.to_dict(), "structure": cut})
    found = from_queue(tmp_path / "q.db", truth.BASELINE)
    assert [e.row for e in found] == [1, 2, 3]
    assert [e.label.hash for e in found] == [examples[n].label.hash for n in (0, 1, 9)]
    assert found[0].simulation == "sha256:3"
    assert np.array_equal(found[2].frame.positions, small.positions)
    queue.claim("me", 60, rows[3].id)
    queue.finish(rows[3].id, "me", {**examples[3].label.to_dict(), "method": "another"})
    with pytest.raises(LabelError, match="another; pair potential"):
        from_queue(queue, None)
    assert len(from_queue(queue, None, "another")) == 1


def test_row_without_a_good_label_is_named(examples, tmp_path: Path):
    """A label that this version did not write is not guessed at."""
    queue = Queue(tmp_path / "q.db", create=True)
    frame = examples[0].frame
    queue.add(KeptFrame(frame, 1, 0.1, np.ones(len(frame.numbers)), np.zeros(2), ("sha256:1",), "sha256:3"))
    queue.claim("me", 60)
    queue.finish(1, "me", {"energy": 1.0})
    with pytest.raises(LabelError, match=r"row 1: .*lacks"):
        from_queue(queue, None)


def test_a_queue_with_a_structure_twice_can_be_learned(examples, tmp_path: Path):
    """The same file without its charge and with it is two rows, and one label; of the second row alone it is that
    row's, as in a loop to which the first one, labelled by somebody meanwhile, does not belong yet."""
    queue = Queue(tmp_path / "q.db", create=True)
    label = with_label(examples[1], charge=0, energy_error=0.0).label
    for charge in (None, 0):
        frame = replace(examples[1].frame, charge=charge, spin=None)
        queue.add(KeptFrame(frame, 1, 0.1, np.ones(len(frame.numbers)), np.zeros(2), ("sha256:1",), "sha256:3"))
    for row in queue.rows():
        queue.claim("me", 60, row.id)
        queue.finish(row.id, "me", label.to_dict())
    assert [row.id for row in queue.rows()] == [1, 2]
    assert [e.row for e in from_queue(queue, None)] == [1]
    assert [e.row for e in from_queue(queue, None, rows={2})] == [2]


def test_label_hash_survives_the_queue(examples, tmp_path: Path):
    """The chain of hashes begins at the labeller: what the queue gives back has the hash that went in."""
    queue = Queue(tmp_path / "q.db", create=True)
    e = examples[0]
    label = Label(**{**e.label.to_dict(), "extra": {"seed": 3, "trial": {"kind": "JSD", "terms": [1, 2.5]}}})
    queue.add(KeptFrame(e.frame, 1, 0.1, np.ones(len(e.frame.numbers)), np.zeros(2), ("sha256:1",), "sha256:3"))
    queue.claim("me", 60)
    queue.finish(1, "me", label.to_dict())
    assert from_queue(queue, None)[0].label.hash == label.hash
