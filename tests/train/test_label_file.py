"""Files of labels as strangers write them: a value is what its name says, or the sentence has file, frame and key."""

from __future__ import annotations

import gzip
import logging
from dataclasses import replace
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest

from beadwork.cli import main
from beadwork.errors import ConfigError, LabelError, ModelError
from beadwork.harvest.queue import Queue
from beadwork.label.user_frames import add
from beadwork.potential.additions import open_additions
from beadwork.potential.bundle import load_card
from beadwork.potential.graph import build
from beadwork.train.baseline import train_model
from beadwork.train.committee import train_committee
from beadwork.train.dataset import check, to_atoms
from beadwork.train.divide import _dataset, format_division
from beadwork.train.label_file import NO_FORCES, from_file, read_examples
from beadwork.train.plan import ATOM_ENERGIES_KEY, make_plan
from beadwork.train.settings import TrainSettings
from support import truth

STRANGERS = Path(__file__).parents[1] / "strangers"
WATER = """3
Properties=species:S:1:pos:R:3:REF_forces:R:3 {said}
O 0.0 0.0 0.1173 0.1 0.0 0.0
H 0.0 0.7572 -0.4692 0.0 0.2 0.0
H 0.0 -0.7572 -0.4692 -0.1 -0.2 0.0
"""


@pytest.fixture
def examples():
    """Sixty clusters of up to three waters with exact labels."""
    return [truth.example(f, n, energy_noise=0.01) for n, f in enumerate(truth.clusters(60, 1))]


def written(file: Path, frames) -> Path:
    """The file, with these frames."""
    ase.io.write(file, frames, format="extxyz")
    return file


def water(file: Path, *said: str, old: str = "", new: str = "") -> Path:
    """A file with a frame of water for each comment line, each another structure; in the last one `old` is `new`."""
    frames = [
        WATER.format(said=f"method=m {one}").replace("0.1173", f"{0.1173 + 0.01 * back:.4f}")
        for back, one in zip(range(len(said) - 1, -1, -1), said, strict=True)
    ]
    assert old in frames[-1]
    frames[-1] = frames[-1].replace(old, new) if old else frames[-1]
    file.write_text("".join(frames))
    return file


def test_file_with_errors(examples, tmp_path: Path):
    """Energies, forces and their standard errors are read; a frame without forces is one without forces."""
    atoms = [to_atoms(e) for e in examples[:6]]
    del atoms[2].arrays["REF_forces"]
    for one in atoms:
        one.info = {k: v for k, v in one.info.items() if k not in ("method", "label")}
    file = written(tmp_path / "x.extxyz", atoms)
    with pytest.raises(LabelError, match="--method"):
        from_file(file, None)
    found = from_file(file, None, "m")
    assert [e.forces is None for e in found] == [n == 2 for n in range(6)]
    for e, original in zip(found, examples, strict=False):
        assert e.energy == pytest.approx(original.label.energy, abs=1e-9)
        assert e.energy_error == 0.01
        assert e.charge == original.charge
    assert len({e.hash for e in found}) == 6
    packed = tmp_path / "x.extxyz.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert [e.energy for e in read_examples(str(packed), None, "m")] == [e.energy for e in found]


@pytest.mark.parametrize(
    ("name", "said"),
    [("forces", "`forces` (5 frames)"), ("dft_forces", "`dft_forces` (5 frames)"), ("force", "`force` (5 frames)")],
)
def test_forces_under_another_name_are_not_left_out(examples, tmp_path: Path, capsys, name, said):
    """The count of both names is said, nothing is trained on energies alone; with the name as an option they are read,
    and with `none` the energies alone are meant. `forces` is what ASE hands to a calculator."""
    atoms = [to_atoms(e) for e in examples[:5]]
    for one in atoms:
        one.arrays[name] = one.arrays.pop("REF_forces")
    file = written(tmp_path / "x.extxyz", atoms)
    code = main(["train", str(file), "--baseline", str(truth.BASELINE), "--out", str(tmp_path / "c")])
    assert code == LabelError.exit_code
    told = capsys.readouterr().err
    assert f"0 of 5 frames of {file} have REF_forces, the others have {said}; name what holds eV/Å" in told
    assert not (tmp_path / "c").exists()
    found = from_file(file, None, forces=name)
    for e, original in zip(found, examples, strict=False):
        assert np.allclose(e.forces, original.label.forces, atol=1e-7)
    assert all(e.forces is None for e in from_file(file, None, forces=NO_FORCES))
    with pytest.raises(LabelError, match=r"0 of 5 frames of .* have f; correct --forces-key|the others have"):
        from_file(file, None, forces="f")


def test_two_names_in_one_file_are_counted(examples, tmp_path: Path):
    """Two of five frames have REF_forces, the others `forces`: as two files that were put together have it."""
    atoms = [to_atoms(e) for e in examples[:5]]
    for one in atoms[2:]:
        one.arrays["forces"] = one.arrays.pop("REF_forces")
    with pytest.raises(LabelError, match=r"2 of 5 frames of .* have REF_forces, the others have `forces` \(3 frames\)"):
        from_file(written(tmp_path / "x.extxyz", atoms), None)


def test_train_counts_labels_with_forces_and_without(examples, tmp_path: Path):
    """Where some frames have no forces under any name, both kinds are counted in a line of `train`."""
    atoms = [to_atoms(e) for e in examples]
    for one in atoms[::3]:
        del one.arrays["REF_forces"]
    found = from_file(written(tmp_path / "x.extxyz", atoms), None)
    dataset = _dataset(found, TrainSettings(), None)
    assert format_division(Path("new"), found, dataset, TrainSettings()) == (
        "new: 60 labels, 40 with forces and 20 with energies alone; 12 are held out in 12 blocks; 60 of no known "
        "simulation are blocks by themselves"
    )


def test_energies_under_another_name(tmp_path: Path):
    """ASE's own `energy` and `forces`, as its calculators are written: named, and read when asked for."""
    file = STRANGERS / "ase_calculator.extxyz"
    with pytest.raises(
        LabelError,
        match=r"0 of 3 frames of .* have REF_energy, frame 0 has not but .*`energy` \(3 frames\).*--energy-key",
    ):
        from_file(file, None, "m")
    found = from_file(file, None, "m", "energy", "forces")
    assert [e.energy for e in found] == [-467.1031, -467.0984, -467.0512]
    assert [e.forces[0, 2] for e in found] == [0.0312, -0.5120, 1.2031]
    some = water(tmp_path / "x.extxyz", "REF_energy=-1", "energy=-1")
    with pytest.raises(LabelError, match=r"1 of 2 frames of .* have REF_energy, frame 1 has not but `energy`"):
        from_file(some, None)
    with pytest.raises(LabelError, match="frame 1 has not; take it out"):
        from_file(water(some, "REF_energy=-1", "nothing=1"), None)
    with pytest.raises(LabelError, match=r"0 of 1 frames .* has not but the numbers U0, mu; name what holds eV"):
        from_file(water(some, "U0=-40.4 mu=0 smiles=C"), None)


def test_names_are_of_files(tmp_path: Path):
    """A queue has no names, so one that is given for it is not left aside without a word."""
    with pytest.raises(ConfigError, match="names of keys and units are of files"):
        read_examples(str(tmp_path / "queue.db"), None, forces="forces")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("REF_energy=None", "REF_energy is 'None'; it must be a number in eV"),
        ("REF_energy=-1.42D+01", "REF_energy is '-1.42D+01'; it must be a number in eV, as -14.2 or -1.42e+01"),
        ('REF_energy="-14.2 eV"', "REF_energy is '-14.2 eV'; it must be a number in eV"),
        ('REF_energy="-14.2 -14.3"', "REF_energy is '-14.2 -14.3'; it must be a number"),
        ("REF_energy=T", "REF_energy is 'true (T)'; it must be a number"),
        ("REF_energy", "REF_energy is 'true (T)'; it must be a number"),
        ("REF_energy= charge=0", "REF_energy is 'charge=0'; it must be a number"),
        ("REF_energy=nan", "REF_energy is 'nan'; it must be a number"),
        ("REF_energy=-14.2 REF_energy_error=?", "REF_energy_error is '?'; it must be a number"),
        ("REF_energy=-14.2 REF_energy_error=-1", "with an error of -1.0"),
        ("REF_energy=-14.2 seconds=long", "seconds is 'long'; it must be a number of seconds"),
        ("REF_energy=-14.2 charge=neutral", "charge is 'neutral'; it must be the total charge in e"),
        ('REF_energy=-14.2 charge="0 1"', "charge is '0 1'; it must be the total charge in e"),
        ("REF_energy=-14.2 charge=0.9", "charge is 0.9; it must be the total charge in e"),
        ("REF_energy=-14.2 total_charge=F", "total_charge is 'False'; it must be the total charge"),
        ("REF_energy=-14.2 spin=singlet", "spin is 'singlet'; it must be a number of unpaired electrons"),
        ("REF_energy=-14.2 spin=1", "spin is 1, which 10 electrons cannot have; give the unpaired electrons as spin"),
        ("REF_energy=-14.2 charge=1 total_spin=1.5", "total_spin is 1.5; it must be a multiplicity"),
        ("REF_energy=-14.2 charge=1 total_charge=0", "has charge=1 and total_charge=0: one of them is wrong"),
        ("REF_energy=-14.2 spin=2 multiplicity=1", "has spin=2 and multiplicity=1: one of them is wrong"),
    ],
)
def test_values_that_are_none(tmp_path: Path, said, told):
    """File, frame and key are named in one sentence, whatever stands where a number belongs."""
    file = water(tmp_path / "x.extxyz", "REF_energy=-14.2", said)
    with pytest.raises(LabelError) as error:
        from_file(file, None)
    assert f"frame 1 of {file}" in str(error.value)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("REF_forces:R:3", "REF_forces:S:3", "REF_forces holds strings; it must have three numbers per atom"),
        ("REF_forces:R:3", "REF_forces:R:1:more:R:2", "REF_forces has 1 columns; it must have three numbers per atom"),
        ("-0.1 -0.2 0.0", "-0.1 nan 0.0", "REF_forces of atom 2 is -0.1 nan 0.0; take the frame out"),
        ("-0.1 -0.2 0.0", "-0.1 -0.2D0 0.0", "cannot be read as extended XYZ"),
        ("H 0.0 -", "Q 0.0 -", "has an atom that is called 'Q', which is no element"),
        ("H 0.0 -0.7572", "H nan -0.7572", r"atom 2 is at \[nan"),
        ("H 0.0 0.7572 -0.4692", "H 0.0 0.0 0.2173", "atoms 0 and 1 of the structure are 0.1 Å apart"),
        ("method=m", 'method=m pbc="T T T"', "the cell has no volume"),
        ("method=m", "method=m config_type=IsolatedAtom", "config_type=IsolatedAtom, and is H2O, whose atoms have"),
    ],
)
def test_bad_frame_is_named(tmp_path: Path, old, new, told):
    """The second of two frames is bad, and the sentence says so, with a baseline that would evaluate it or without."""
    file = water(tmp_path / "x.extxyz", "REF_energy=-14.2", "REF_energy=-14.2", old=old, new=new)
    for baseline in (None, truth.BASELINE):
        with pytest.raises(LabelError, match=f"frame 1 of .*x.extxyz:? .*{told}") as error:
            from_file(file, baseline)
        assert "\n" not in str(error.value)


def test_weights_of_mace(tmp_path: Path, caplog):
    """Placeholder forces of weight 0 are not learned, nor a frame of weight 0; other weights are said to be unused."""
    caplog.set_level(logging.INFO, "beadwork")
    file = water(
        tmp_path / "x.extxyz",
        "REF_energy=-14.2",
        "REF_energy=-14.3 config_forces_weight=0.0",
        "nothing=1 config_weight=0",
        "REF_energy=-14.4 config_energy_weight=0 config_forces_weight=0",
        "REF_energy=-14.5 config_weight=2.5 config_energy_weight=1.0",
    )
    found = from_file(file, None)
    assert [(e.row, e.energy, e.forces is None) for e in found] == [
        (0, -14.2, False),
        (1, -14.3, True),
        (4, -14.5, False),
    ]
    assert caplog.messages[-1].startswith(
        f"{file}: 2 frames have weight 0, and are left out; 1 frames have forces of weight 0, which are left out; "
        "1 frames have other weights than 0 and 1, which are not used"
    )
    for said, told in (
        (
            "config_energy_weight=0",
            "frame 0 of .* has config_energy_weight=0 and forces, which cannot be learned without",
        ),
        ("config_weight=0", "every frame of .* has weight 0"),
        ("config_forces_weight=-1", "frame 0 of .*: config_forces_weight is -1; it must be a weight, 0 or more"),
        ("config_weight=high", "frame 0 of .*: config_weight is 'high'; it must be a weight"),
    ):
        with pytest.raises(LabelError, match=told):
            from_file(water(file, f"REF_energy=-14.2 {said}"), None)


def test_two_methods_in_one_file(tmp_path: Path):
    """As of a queue: --method takes the labels of one, and those that name none; one that no frame has is named."""
    file = water(tmp_path / "x.extxyz", "REF_energy=-14.2", "REF_energy=-14.3 method=n", "REF_energy=-14.4")
    file.write_text(
        file.read_text()
        .replace("method=m REF_energy=-14.4", "REF_energy=-14.4")
        .replace("method=m REF_energy=-14.3", "REF_energy=-14.3")
    )
    assert [(e.row, e.label.method) for e in from_file(file, None, "m")] == [(0, "m"), (2, "m")]
    assert [(e.row, e.label.method) for e in from_file(file, None, "n")] == [(1, "n"), (2, "n")]
    with pytest.raises(LabelError, match="has no labels of o, but of m; correct --method"):
        from_file(water(file, "REF_energy=-14.2"), None, "o")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("O", "D", "T"), None),
        (("8", "1", "1"), None),
        (("O1", "H1", "H2"), None),
        (
            ("OW", "HW1", "HW2"),
            "an atom that is called 'OW', which is no element: write the element's symbol .perhaps O",
        ),
        (("O", "X", "X"), "atoms of no known element"),
    ],
)
def test_atoms_are_called_as_for_a_queue(tmp_path: Path, names, said):
    """What `queue add` reads is read, and what it refuses is refused, with or without labels."""
    rows = "".join(f"{name} {x} 0.0 0.0 0.0 0.0 0.0\n" for name, x in zip(names, (0.0, 0.96, -0.96), strict=True))
    file = tmp_path / "x.extxyz"
    file.write_text(f"3\nProperties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=-14.2\n{rows}")
    queue = Queue(tmp_path / "q.db", create=True)
    if said is None:
        assert add(queue, file).stored == 1
        assert from_file(file, None, "m")[0].frame.numbers.tolist() == [8, 1, 1]
        return
    for act in (lambda: add(queue, file), lambda: from_file(file, None, "m")):
        with pytest.raises((ConfigError, LabelError), match=f"frame 0 of .* has {said}"):
            act()


@pytest.mark.parametrize("sign", ["\u2028", "\x85", "\x0c", "\x1c"])
def test_a_line_ends_at_its_newline(tmp_path: Path, sign):
    """What Unicode calls an end of a line is none in a comment, for labels and for a queue."""
    file = water(tmp_path / "x.extxyz", f'REF_energy=-14.2 note="a{sign}b"', "REF_energy=-14.3")
    assert [e.energy for e in from_file(file, None)] == [-14.2, -14.3]
    assert add(Queue(tmp_path / "q.db", create=True), file).stored == 2


def test_no_record_is_lost_without_a_word(tmp_path: Path):
    """An empty line, at which ASE ends, a file that was cut between two lines or in its last number, and no frames."""
    file = water(tmp_path / "x.extxyz", *["REF_energy=-14.2"] * 3)
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    assert len(from_file(file, None)) == 3
    file.write_text(whole + "\n \n")
    assert len(from_file(file, None)) == 3, "empty lines at the end are usual"
    for text, told in (
        ("".join([*lines[:5], "\n", *lines[5:]]), "line 6 of .* is empty, and frames follow in line 7"),
        ("".join(lines[:-1]), "frame 2 of .* ends before its last atom"),
        (whole[:-4], "the last line of .* has no end"),
        ("".join([*lines[:4], *lines[5:]]), "line 6 of .* is 'Properties.*the number of atoms of frame 1 belongs"),
        ("no frames here\n", "line 1 of .* is 'no frames here', .* of frame 0"),
        ("", "has no frames"),
    ):
        file.write_text(text)
        with pytest.raises(LabelError, match=told):
            from_file(file, None)
    with pytest.raises(LabelError, match="cannot be read"):
        from_file(tmp_path / "nowhere.xyz", None)


def test_a_last_line_without_end_is_whole_by_its_digits(tmp_path: Path):
    """As of `queue add`: without a newline the last number counts where all rows have as many digits. A byte order mark
    is no part of the first line, and empty lines at the end change nothing."""
    file = tmp_path / "x.extxyz"
    text = "".join(
        f"3\nProperties=species:S:1:pos:R:3:REF_forces:R:3 method=m REF_energy={energy}\n"
        f"O 0.00 0.00 0.00 0.0 0.0 0.125\nH {x} 0.00 0.00 0.0 0.0 0.250\nH -0.24 0.93 0.00 0.0 0.0 -0.375\n"
        for energy, x in ((-14.2, 0.96), (-14.3, 0.95))
    )
    for kept in (text, text[:-1], text[:-1].replace("\n", "\r\n"), text + "\n \n", text + "\n ", "\ufeff" + text):
        file.write_bytes(kept.encode())
        found = from_file(file, None)
        assert [e.energy for e in found] == [-14.2, -14.3]
        assert found[1].forces[2].tolist() == [0.0, 0.0, -0.375]
        atoms = Queue(tmp_path / f"{len(kept)}.db", create=True)
        assert add(atoms, file).stored == 2, "the same file gives its two structures to a queue"
    cell = "VEC1 9.0 0.0 0.0\nVEC2 0.0 9.0 0.0\nVEC3 0.0 0.0 9.0"
    for cut in (text[:-2], text[:-3], text[: text.rindex("\n", 0, -1)] + "\nH 1 1 1 1 1 1", text + cell[:-1]):
        file.write_text(cut)
        with pytest.raises(LabelError, match=r"the last line of .* has no end"):
            from_file(file, None)


def test_charge_and_spin_by_any_name(tmp_path: Path):
    """MACE's total_charge and total_spin (a multiplicity) are charge and unpaired electrons; whole numbers however they
    are written; and a total_charge beside frames of charge 0 is refused as charge is."""
    file = tmp_path / "x.extxyz"
    for said, wanted in (
        ("charge=1 spin=1", (1, 1)),
        ("charge=+1 spin=[1]", (1, 1)),
        ("total_charge=1.0 total_spin=2", (1, 1)),
        ("charge=-1 total_charge=-1 spin_multiplicity=2", (-1, 1)),
        ("multiplicity=3", (None, 2)),
        ("nothing=0", (None, None)),
    ):
        (found,) = from_file(water(file, f"REF_energy=-14.2 {said}"), None)
        assert (found.label.charge, found.label.spin) == wanted, said
    state = "H2O was labelled with charge not said, spin not said and with charge 1, spin 1"
    with pytest.raises(LabelError, match=state):
        from_file(water(file, "REF_energy=-14.2", "REF_energy=-2 total_charge=1 total_spin=2"), None)
    assert len(from_file(water(file, "REF_energy=-14.2", "REF_energy=-2 charge=0"), None)) == 2


def test_a_charge_that_is_not_said_is_not_taken_for_none(tmp_path: Path):
    """D4 of H3O+ is half that of H3O: a file without charges is refused where D4 is taken out, by the frame's name, and
    D4 goes out of the ion's energy as a server adds it; nor are spins guessed, nor charges written that nobody said."""
    pytest.importorskip("dftd4")
    atoms = ase.Atoms("OH3", [[0, 0, 0.1], [0.95, 0, -0.2], [-0.48, 0.83, -0.2], [-0.48, -0.83, -0.2]])
    atoms.info["REF_energy"] = -2080.0
    file = written(tmp_path / "x.extxyz", [atoms])
    (unsaid,) = from_file(file, None, "m")
    assert (unsaid.frame.charge, unsaid.frame.spin, unsaid.composition) == (None, None, "H3O")
    assert not {"charge", "spin"} & set(to_atoms(unsaid).info)
    with pytest.raises(LabelError, match=r"frame 0 of x.extxyz does not say its total charge, which d4=PBE .* wants; "):
        from_file(file, None, "m", add={"d4": "PBE"})
    atoms.info["charge"] = 1
    (ion,) = from_file(written(file, [atoms]), None, "m", add={"d4": "PBE"})
    served = open_additions({"d4": "PBE"}, [1, 8])[0].evaluate(build([ion.frame], 0.0))
    assert -2080 - ion.energy == pytest.approx(served.energies[0], abs=1e-9)
    assert -2080 - ion.energy == pytest.approx(-0.0056, abs=2e-4)  # as a neutral one: -0.0108


def with_atoms(examples, tmp_path: Path, *kinds: str):
    """The examples behind four isolated atoms, far from what the frames are made of, read back from a file."""
    atoms = []
    for n, (symbol, kind) in enumerate(zip("HOHO", kinds * 4, strict=False)):
        one = ase.Atoms(symbol, [[0, 0, 0]], info={"REF_energy": {"H": -100.0, "O": 50.0}[symbol], "version": n})
        one.info |= {"config_type": kind} if kind else {}
        atoms.append(one)
    atoms += [to_atoms(e) for e in examples]
    for one in atoms:
        one.info["method"] = "pair potential"
    return from_file(written(tmp_path / "x.extxyz", atoms), None)


@pytest.mark.parametrize("kinds", [("IsolatedAtom", "isolated_atom"), ("",)])
def test_isolated_atoms_move_no_reference_energy(examples, tmp_path: Path, kinds):
    """Four of them in front of 60 frames: never drawn, never held out, in no average; what all members share is what
    it is without them."""
    found = with_atoms(examples, tmp_path, *kinds)
    check(found)
    assert [e.isolated for e in found] == [True] * 4 + [False] * 60
    for seed in range(5):
        settings = TrainSettings(seed=seed)
        dataset, alone = _dataset(found, settings, None), _dataset(found[4:], settings, None)
        assert dataset.hash == alone.hash
        assert make_plan(dataset, settings, []) == make_plan(alone, settings, [])
    assert make_plan(dataset, settings, [])["reference_energies"]["1"] == pytest.approx(-0.7, abs=3.0)


def test_isolated_atoms_are_a_baseline_s_reference_energies(examples, tmp_path: Path, monkeypatch):
    """A model of the labels takes their energies; one that misses an element, and two that differ, are said. H+ has no
    energy that hydrogen could have for its reference."""
    plans = []

    def stop(member, folder, settings, plan, *rest):
        plans.append(plan)
        raise ModelError("seen enough")

    monkeypatch.setattr("beadwork.train.baseline.train_member", stop)
    said: list[str] = []

    def train(found, name):
        with pytest.raises(ModelError, match="seen enough"):
            train_model(found, tmp_path / name, TrainSettings(), progress=said.append)
        return plans[-1]

    found = with_atoms(examples, tmp_path, "IsolatedAtom")
    plan = train(found, "a")
    assert plan["reference_energies"] == {"1": -100.0, "8": 50.0} == plan[ATOM_ENERGIES_KEY]
    assert "4 isolated atoms (H, O), neither trained on nor tested: their energies are the reference" in said[-1]
    assert ATOM_ENERGIES_KEY not in train(found[2:3] + found[4:], "b")
    assert "1 isolated atoms (H), neither trained on nor tested: O is missing: references are fitted" in said[-1]
    ions = [replace(e, frame=replace(e.frame, charge=1), label=replace(e.label, charge=1)) for e in found[0:4:2]]
    assert ATOM_ENERGIES_KEY not in train([*ions, found[1], *found[4:]], "d")
    assert "2 isolated ions (H), neither trained on nor tested" in said
    assert "1 isolated atoms (O), neither trained on nor tested: H is missing: references are fitted" in said[-1]
    other = replace(found[2], energy=found[2].energy + 0.5)
    with pytest.raises(LabelError, match=r"frame 0 of x.extxyz has -100.0000 eV, the one in frame 2 of .* -99.5000"):
        train_model([*found[:2], other, *found[3:]], tmp_path / "c", TrainSettings())


def test_a_delta_sets_isolated_atoms_aside_and_says_so(examples, tmp_path: Path, monkeypatch):
    """The line of `beadwork train`; nothing but the other frames reaches the dataset of the committee."""
    monkeypatch.setattr(
        "beadwork.train.committee.train_missing", lambda *rest: (_ for _ in ()).throw(ModelError("seen enough"))
    )
    said: list[str] = []
    found = [replace(e, baseline=load_card(truth.BASELINE).hash) for e in with_atoms(examples, tmp_path, "")]
    with pytest.raises(ModelError, match="seen enough"):
        train_committee(found, truth.BASELINE, tmp_path / "c", progress=said.append)
    assert "60 labels, 60 with forces and 0 with energies alone; 12 are held out" in said[0]
    assert "4 isolated atoms (H, O) are left out, neither trained on nor tested" in said[1]


@pytest.mark.parametrize("count", ["²", "9" * 5001, "-1"])
def test_a_count_of_atoms_that_is_none_is_named(count: str, tmp_path: Path) -> None:
    """A digit that is no number, and one longer than Python reads: a sentence with the line, not a traceback."""
    file = tmp_path / "labels.xyz"
    file.write_text(f"{count}\nREF_energy=1.0\nH 0 0 0\n", encoding="utf-8")
    with pytest.raises(LabelError, match=r"line 1 of .*, where the number of atoms of frame 0 belongs"):
        read_examples(str(file), None)
