"""Bundles: what is imported is what is served, and every bad one is refused with a sentence that names it."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch

from beadwork.errors import ModelError
from beadwork.potential.architecture import mace_imported
from beadwork.potential.auto_engine import open_engine
from beadwork.potential.bundle import amend_card, check, format_card, load_card, load_committee, sha256
from beadwork.potential.graph import build
from beadwork.potential.importer import import_model


@pytest.fixture
def copy(made, tmp_path):
    """A copy of a good bundle, to be spoilt."""
    return shutil.copytree(made["vector"].bundle, tmp_path / "copy")


def edit(bundle, old, new):
    """Change the card's text."""
    card = bundle / "card.toml"
    text = card.read_text()
    assert old in text
    card.write_text(text.replace(old, new))


def test_card_says_what_the_model_is(made):
    """Elements, cutoff, precision and hashes are read off the model itself."""
    card = check(made["invariant"].bundle)
    assert (card.elements, card.cutoff, card.dtype, card.head) == ((1, 8), 4.5, "float32", None)
    assert card.hash == "sha256:" + sha256(made["invariant"].bundle / "model.safetensors")
    assert check(made["vector"].bundle).dtype == "float64"
    assert "cutoff 4.5 Å" in format_card(made["invariant"].bundle)


def damage(bundle, change):
    """Change the bytes of model.pt, and leave the card as it was."""
    file = bundle / "model.pt"
    file.write_bytes(change(file.read_bytes()))


def exchange(bundle, write):
    """Put another file in the place of model.pt, with a card that vouches for it."""
    old = load_card(bundle).sha256["model.pt"]
    write(bundle / "model.pt")
    edit(bundle, old, sha256(bundle / "model.pt"))


def foreign(file):
    """Write TorchScript that is no MACE model."""
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(file))


BAD = {
    "missing": (lambda b: (b / "model.pt").unlink(), r"model\.pt is named in the card but missing"),
    "truncated": (lambda b: damage(b, lambda d: d[: len(d) // 2]), r"model\.pt is not the file.*truncated or changed"),
    "one bit": (lambda b: damage(b, lambda d: d[:999] + bytes([d[999] ^ 1]) + d[1000:]), r"model\.pt is not the file"),
    "no card": (lambda b: (b / "card.toml").unlink(), r"card\.toml is missing, so .* is no model bundle"),
    "torn card": (lambda b: (b / "card.toml").write_text("format ="), r"card\.toml cannot be read as TOML"),
    "a number of 5000 digits": (
        lambda b: edit(b, "format = 1", "format = 1" + 5000 * "0"),
        r"card\.toml cannot be read as TOML",
    ),
    "binary card": (lambda b: (b / "card.toml").write_bytes(b"\xff\xfe\x00"), r"card\.toml cannot be read as TOML"),
    "format": (lambda b: edit(b, "format = 1", "format = 7"), r"has format 7, this beadwork reads 1"),
    "units": (lambda b: edit(b, '"eV"', '"Hartree"'), r"declares units .*Hartree"),
    "dtype": (lambda b: edit(b, 'dtype = "float64"', 'dtype = "float16"'), r"says dtype 'float16'"),
    "cutoff": (lambda b: edit(b, "cutoff = 4.0", "cutoff = 0.0"), r"names no elements, no cutoff"),
    "elements": (lambda b: edit(b, "elements", "atoms"), r"lacks an entry.*elements"),
    "card of another cutoff": (
        lambda b: edit(b, "cutoff = 4.0", "cutoff = 4.5"),
        r"and cutoff 4\.5 Å, but the model has .* and 4 Å: the card is another model's",
    ),
    "card of other elements": (
        lambda b: edit(b, "    8,\n", "    7,\n"),
        r"elements \(1, 7\) and .*, but the model has \(1, 8\) and .*: the card is another model's",
    ),
    "foreign": (lambda b: exchange(b, foreign), r"is TorchScript but no MACE energy model"),
    "a card that names what is outside": (
        lambda b: edit(b, '"model.pt" =', '"../../../../etc/passwd" = "0"\n"model.pt" ='),
        r"card\.toml names '\.\./\.\./\.\./\.\./etc/passwd', which is no file of the bundle",
    ),
    "a card that names its folder's parent": (
        lambda b: edit(b, '"model.pt" =', '".." = "0"\n"model.pt" ='),
        r"card\.toml names '\.\.', which is no file of the bundle",
    ),
    "four terabytes of nothing": (
        lambda b: os.truncate(b / "model.pt", 4 * 10**12),
        r"model\.pt has 4000000000000 bytes, more than any model",
    ),
    "a card of four terabytes": (
        lambda b: os.truncate(b / "card.toml", 4 * 10**12),
        r"card\.toml has 4000000000000 bytes, more than any card",
    ),
    "no zip": (lambda b: exchange(b, lambda f: f.write_bytes(b"no model")), r"is no readable TorchScript model"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_bundles_are_refused(copy, bad):
    """Each kind of damage has its sentence, whichever engine is asked for."""
    spoil, sentence = BAD[bad]
    spoil(copy)
    for engine in ("torchscript", "auto"):
        with pytest.raises(ModelError, match=sentence):
            open_engine(copy, engine)


def test_damaged_native_model(copy):
    """A native.json that is not the card's is refused; one without a native model says so."""
    (copy / "native.json").write_text("{}")
    with pytest.raises(ModelError, match=r"native\.json is not the file"):
        open_engine(copy, "native")
    old = load_card(copy).sha256["native.json"]
    edit(copy, old, sha256(copy / "native.json"))
    pytest.importorskip("symmetrix")
    with pytest.raises(ModelError, match=r"native\.json cannot be run natively"):
        open_engine(copy, "native")
    assert "native.json cannot be run" in open_engine(copy, "auto").choice


def test_amending_vouches_for_nothing(copy):
    """A card is not amended to fit files that were damaged after it was written; one that fits keeps its hashes."""
    before = load_card(copy).sha256
    assert amend_card(copy, note="seen").sha256 == before
    damage(copy, lambda d: d[:-1])
    with pytest.raises(ModelError, match="truncated or changed"):
        amend_card(copy, note="seen again")
    assert load_card(copy).about["note"] == "seen"


def test_no_bundle_at_all(tmp_path):
    """A path that is missing, and a file where a folder belongs."""
    with pytest.raises(ModelError, match="is missing; a bundle is a folder"):
        load_card(tmp_path / "nowhere")
    file = tmp_path / "file.model"
    file.write_text("")
    with pytest.raises(ModelError, match="is a file; import it first"):
        load_card(file)


class Payload:
    """Unpickling this makes a folder: harmless, and easy to see."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "plain"])
def test_pickle_runs_nothing_without_trust(tmp_path, how):
    """A pickle's payload runs only when the user says that the file is trusted."""
    file, proof = tmp_path / "evil.model", tmp_path / "proof"
    if how == "torch":
        torch.save(Payload(proof), file)
    else:
        file.write_bytes(pickle.dumps(Payload(proof)))
    with pytest.raises(ModelError, match="is a Python pickle, which can run any code"):
        import_model(file, tmp_path / "out")
    assert not proof.exists()
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError):  # it is no MACE model either
        import_model(file, tmp_path / "out", trust_pickle=True)
    assert proof.exists()  # so the payload would have run


def _of_a_later_zip() -> bytes:
    """An archive one byte of which says that it needs version 10.9 of the format, as flipped bits do."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("m/code/m.py", "")
    data = bytearray(made.getvalue())
    data[data.index(b"PK\x01\x02") + 6] = 109
    return bytes(data)


_LATER_ZIP = _of_a_later_zip()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is neither TorchScript nor a PyTorch model"),
        (b"<html>404</html>", "is neither TorchScript nor a PyTorch model"),
        (b"PK\x03\x04 torn", "cannot be read .* copy it again"),
        (_LATER_ZIP, "cannot be read .*zip file version 10.9.* copy it again"),
    ],
)
def test_foreign_files_are_not_imported(tmp_path, content, sentence):
    """Whatever a download may leave behind is refused by its first bytes."""
    file = tmp_path / "m.model"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=sentence):
        import_model(file, tmp_path / "out", trust_pickle=True)
    with pytest.raises(ModelError, match="does not exist"):
        import_model(tmp_path / "nothing", tmp_path / "out")


def test_trusted_but_truncated(made, tmp_path):
    """Half of an eager model is refused."""
    file = tmp_path / "half.model"
    data = made["vector"].file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"cannot be read .* copy it again"):
        import_model(file, tmp_path / "out", trust_pickle=True)


def test_import_does_not_overwrite(made, tmp_path):
    """A folder that holds something is left alone."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("\\chapter{}")
    with pytest.raises(ModelError, match="exists and is not an empty folder"):
        import_model(made["vector"].file, tmp_path / "out", trust_pickle=True)


def test_import_of_torchscript(made, shapes, tmp_path):
    """TorchScript is taken as it is, without trust; the card says why there is no native model."""
    card = import_model(made["vector"].bundle / "model.pt", tmp_path / "again", name="mine", command="mace_run_train")
    assert card.elements == (1, 8)
    assert card.name == "mine"
    assert card.about["command"] == "mace_run_train"
    assert not card.native
    with pytest.raises(ModelError, match="native model needs the eager one"):
        open_engine(tmp_path / "again", "native")
    graph = build([shapes.structure("liquid", 1)], 4.5)
    one, two = (open_engine(b, "torchscript").evaluate(graph) for b in (made["vector"].bundle, tmp_path / "again"))
    assert np.array_equal(one.forces, two.forces)


def test_the_head_that_is_named_answers_in_both_engines(mace_model, shapes, tmp_path, monkeypatch):
    """A model of several heads needs one named, and that head is the one that answers, in both engines."""
    model = mace_model(4, 0, False, 3, "float64", heads=["pbe", "r2scan"])
    model.atomic_energies_fn.atomic_energies[1] -= 100.0
    file = tmp_path / "two.model"
    torch.save(model, file)
    with pytest.raises(ModelError, match=r"several heads \(pbe, r2scan\); name the one"):
        import_model(file, tmp_path / "out", trust_pickle=True)
    with pytest.raises(ModelError, match="no head 'b3lyp'; it has pbe, r2scan"):
        import_model(file, tmp_path / "out", head="b3lyp", trust_pickle=True)
    graph = build([shapes.structure("liquid", 1)], 4.5)
    with monkeypatch.context() as patch:
        patch.setattr("beadwork.potential.importer.available", lambda: False)
        card = import_model(file, tmp_path / "pbe", head="pbe", trust_pickle=True)
        assert card.about["native"] == "symmetrix-xl was not installed when this was imported"
    assert import_model(file, tmp_path / "r2scan", head="r2scan", trust_pickle=True).head == "r2scan"
    assert len({load_card(tmp_path / head).hash for head in ("pbe", "r2scan")}) == 2
    one, two = (open_engine(tmp_path / head, "torchscript").evaluate(graph) for head in ("pbe", "r2scan"))
    assert abs(one.energies - two.energies)[0] > 50
    assert np.abs(one.forces - two.forces).max() > 1e-3
    pytest.importorskip("symmetrix")
    native = open_engine(tmp_path / "r2scan", "native").evaluate(graph)
    assert abs(native.energies - two.energies)[0] < 1e-6
    assert np.abs(native.forces - two.forces).max() < 1e-6


def test_mace_leaves_the_guard_as_it_was(monkeypatch):
    """Importing mace switches off torch's weights_only guard for the whole process; we put it back."""
    for before in (None, "0"):
        if before is None:
            monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
        else:
            monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", before)
        with mace_imported():
            os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # what mace does when it is imported first
        assert os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD") == before


def test_alpha_and_weights_come_from_the_card_of_exactly_these(tmp_path):
    """alpha and weights come from the file beside the members, and only if it is about exactly them."""
    members = [tmp_path / f"delta-{m}" for m in range(3)]
    assert load_committee(members) is None
    (tmp_path / "committee.toml").write_text("alpha = 1.5\n")
    found = load_committee(members)
    assert (found.alpha, found.energy_alpha) == (1.5, 1.5)
    (tmp_path / "committee.toml").write_text("alpha = 1.5\nenergy_alpha = 4.0\n")
    assert (load_committee(members).alpha, load_committee(members).energy_alpha) == (1.5, 4.0)
    assert dict(found.weights) == {"delta-0": 1.0, "delta-1": 1.0, "delta-2": 1.0}
    text = 'alpha = 2.0\nmembers = ["delta-2", "delta-0", "delta-1"]\nweights = [3, 1, 2]\n'
    (tmp_path / "committee.toml").write_text(text)
    assert dict(load_committee(members).weights) == {"delta-0": 1.0, "delta-1": 2.0, "delta-2": 3.0}
    assert load_committee(members[:2]) is None
    assert load_committee(members).usual is None
    spread = "[spread_held_out]\nshares = [0.5, 0.99]\nforce_eV_per_angstrom = "
    (tmp_path / "committee.toml").write_text(f"alpha = 1.5\n{spread}[0.001, 0.004]\n")
    assert load_committee(members).usual == 0.004
    for values in ("[0.001]", "[0.001, -1.0]", '["a", "b"]', "3"):
        (tmp_path / "committee.toml").write_text(f"alpha = 1.5\n{spread}{values}\n")
        with pytest.raises(ModelError, match=r"\[spread_held_out\]"):
            load_committee(members)
    nonsense = ("alpha = inf\n", "energy_alpha = nan\n", "alpha = 1e-200\n", "weights = [1e308, 1e308, 1e308]\n")
    for wrong in (*nonsense, "weights = [0, 0, 0]\n", "weights = [nan, 1, 1]\n"):
        (tmp_path / "committee.toml").write_text(wrong)
        with pytest.raises(
            ModelError, match=r"committee\.toml has alpha .* must be from 1e-6 to 1e6, weights too, or 0"
        ):
            load_committee(members)
    for wrong in (
        "alpha = -1\n",
        "energy_alpha = 0\n",
        "weights = [1, 2]\n",
        'alpha = "high"\n',
        "weights = [-1, 1, 1]\n",
        "alpha = \n",
    ):
        (tmp_path / "committee.toml").write_text(wrong)
        with pytest.raises(ModelError, match=r"committee\.toml"):
            load_committee(members)
