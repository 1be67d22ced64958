"""Baselines that `beadwork train` makes: from scratch, and fine-tuned from a MACE of another origin."""

from __future__ import annotations

import shutil
import urllib.error
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from beadwork.cli import main
from beadwork.errors import ConfigError, ModelError
from beadwork.potential.architecture import mace_imported
from beadwork.potential.bundle import check, load_card
from beadwork.potential.load import load
from beadwork.train.baseline import train_model
from beadwork.train.dataset import Dataset
from beadwork.train.foundation import _downloaded, open_foundation
from beadwork.train.plan import references
from beadwork.train.settings import TrainSettings
from support import truth
from support.random_models import random_mace

ONE = TrainSettings(members=1, epochs=2, batch_size=5, lr=1e-12, seed=5, hidden_irreps="4x0e")


def labels(count: int = 24) -> list[Any]:
    """Labels themselves, not differences, of H and O."""
    return [replace(truth.example(f, n), baseline=None) for n, f in enumerate(truth.clusters(count, 1, most=2))]


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a MACE that knows more elements, has another form than ours, and two heads."""
    file = tmp_path_factory.mktemp("stranger") / "stranger.model"
    model = random_mace(
        seed=3, cutoff=4.5, scale=0.3, shift=0.1, neighbors=6.0, energies=[-13.0, -1000.0, -2000.0], elements=(1, 6, 8),
        order=1, zbl=True, channels=4, heads=["pbe", "cc"],
    )  # fmt: skip
    torch.save(model, file)
    return file


@pytest.mark.slow
def test_fine_tuning_starts_from_the_model_itself(stranger: Path, tmp_path: Path) -> None:
    """With steps of nothing a baseline is the stranger's head itself, but for reference energies, which fit the labels.

    So weights, form, cutoff, scale and repulsion are taken over, of the elements that the labels have.
    """
    said: list[str] = []
    foundation = open_foundation(stranger, tmp_path / "foundation", "cc", trust_pickle=True)
    out = train_model(labels(), tmp_path / "base", ONE, None, said.append, "tuned", foundation=foundation)
    assert "fine-tunes stranger.model: architecture and cutoff (4.5 Å) are that model's" in said[1]
    card = check(out)
    assert (card.elements, card.cutoff) == ((1, 8), 4.5)
    assert card.about["plan"]["foundation"] == {"file": "stranger.model", "head": "cc"}
    assert card.about["plan"]["start"] == [foundation.hash]
    assert "hidden_irreps" not in card.about["plan"]["settings"]
    assert "--foundation_model=stranger.model" in card.about["mace_run_train"]
    assert str(stranger.parent) not in (out / "card.toml").read_text(), "a card that ships names nobody's folders"
    assert card.novelty is not None
    dataset = Dataset.read(out)
    assert card.about["held_out"]["frames"] == len(dataset.testing) > 0
    frames = [e.frame for e in dataset.examples]
    ours, theirs = load(out).evaluate(frames), load(tmp_path / "foundation").evaluate(frames)
    assert np.abs(theirs.forces).max() > 1.0
    np.testing.assert_allclose(ours.forces, theirs.forces, atol=2e-4 * np.abs(theirs.forces).max())
    reference = references(out)
    old = foundation.energies_of_atoms([1, 8])
    assert old == pytest.approx({1: -13.0, 8: -2000.0})
    shift = [sum(reference[int(z)] - old[int(z)] for z in f.numbers) for f in frames]
    np.testing.assert_allclose(ours.energies - theirs.energies, shift, atol=5e-3)
    training = ~np.array(dataset.held_out)
    wrong = [(a - e.energy) / len(e.frame.numbers) for a, e in zip(ours.energies, dataset.examples, strict=True)]
    assert abs(np.mean(np.array(wrong)[training])) < 0.02, "the reference energies take up what it is wrong by"
    with pytest.raises(ModelError, match="was fine-tuned from a model of another architecture"):
        train_model(labels(), tmp_path / "next", replace(ONE, lr=0.01), previous=out)


@pytest.mark.slow
def test_train_makes_a_baseline_by_one_command(tmp_path: Path, stranger: Path) -> None:
    """From scratch, and from a file that was trusted: labels, errors and novelty are in its card, and it serves."""
    import ase.io

    from beadwork.train.dataset import to_atoms

    frames = []
    for e in labels():
        atoms = to_atoms(e)
        atoms.arrays = {"numbers": atoms.numbers, "positions": atoms.positions}
        atoms.info = {"REF_energy": e.energy, "charge": e.label.charge, "spin": e.label.spin}
        atoms.arrays["REF_forces"] = e.forces
        frames.append(atoms)
    ase.io.write(tmp_path / "labels.extxyz", frames, format="extxyz")
    (tmp_path / "train.toml").write_text('epochs = 2\nhidden_irreps = "4x0e"\nr_max = 4.0\n')
    base = ["train", str(tmp_path / "labels.extxyz"), "--as-baseline", "--method", "pairs"]
    base += ["--settings", str(tmp_path / "train.toml"), "--out"]
    assert main([*base, str(tmp_path / "scratch")]) == 0
    card = check(tmp_path / "scratch")
    assert card.about["trained_on"] == "REF_energy, REF_forces"
    assert "baseline" not in card.about
    assert card.about["method"] == "pairs"
    assert set(card.about["held_out"]) == {
        "frames",
        "blocks",
        "energy_rmse_meV_per_atom",
        "force_rmse_meV_per_angstrom",
    }
    assert card.novelty is not None
    assert np.isfinite(load(tmp_path / "scratch").evaluate([labels()[0].frame]).forces).all()
    tuned = [*base, str(tmp_path / "tuned"), "--from", str(stranger), "--trust-pickle", "--head", "pbe"]
    assert main(tuned) == 0
    assert load_card(tmp_path / "tuned").about["plan"]["foundation"]["head"] == "pbe"
    assert not list(tmp_path.glob("*.parts"))


def test_a_file_is_taken_only_where_it_is_trusted_and_meant(
    tmp_path: Path, stranger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trust and head are asked for before anything is read, and refused where there is no file to which they belong."""
    base = ["train", "labels.extxyz", "--as-baseline", "--out", str(tmp_path / "out")]
    for more, said in (
        (["--from", str(stranger)], "is a Python pickle, which can run any code"),
        (["--from", str(stranger), "--trust-pickle"], "has several heads (pbe, cc)"),
        (["--trust-pickle"], "--head and --trust-pickle are of a file that --from names"),
    ):
        assert main([*base, *more]) == (ConfigError if "are of a file" in said else ModelError).exit_code
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_fine_tuned(tmp_path: Path) -> None:
    """TorchScript, which mace cannot take up, and a model that lacks an element of the labels."""
    with pytest.raises(ModelError, match="is TorchScript, which mace_run_train cannot fine-tune"):
        open_foundation(truth.BASELINE / "model.pt", tmp_path / "other")
    model = random_mace(
        seed=1, cutoff=4.0, scale=0.3, shift=0.0, neighbors=6.0, energies=[-13.0, -1000.0], elements=(1, 6), channels=2
    )
    torch.save(model, tmp_path / "few.model")
    foundation = open_foundation(tmp_path / "few.model", tmp_path / "few", trust_pickle=True)
    with pytest.raises(ModelError, match=r"few.model does not know O"):
        train_model(labels(), tmp_path / "base", ONE, foundation=foundation)


def test_a_name_of_mace_torch_s_is_downloaded_by_it(
    tmp_path: Path, stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own code, into its own cache; where it cannot, its reason is told, and no name is guessed."""
    with mace_imported():
        from mace.calculators import foundations_models

    def offline(url: str, file: str, **_: Any) -> Any:
        raise urllib.error.URLError(f"no way to {url}")

    def online(url: str, file: str, **_: Any) -> Any:
        assert url.endswith("MACE-OFF23_small.model")
        shutil.copy(stranger, file)
        return file, "Content-Type: application/octet-stream"

    monkeypatch.setattr(foundations_models, "get_cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(foundations_models, "_urlretrieve_with_timeout", offline)
    with pytest.raises(
        ModelError, match=r"cannot download medium \(<urlopen error no way to https://github.com/.*fetch"
    ):
        open_foundation(Path("medium"), tmp_path / "bundle", trust_pickle=True)
    with pytest.raises(
        ModelError, match=r"mediun is neither a file, a bundle nor a foundation .*it knows small, medium, large"
    ):
        open_foundation(Path("mediun"), tmp_path / "bundle", trust_pickle=True)
    monkeypatch.setattr(foundations_models, "_urlretrieve_with_timeout", online)
    found = _downloaded(Path("small_off"))
    assert found.parent == tmp_path / "cache"
    assert found.read_bytes() == stranger.read_bytes()
