"""The sum and the spread, held against NumPy on the members' own answers and against finite differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import beadwork
from beadwork.errors import GeometryError, ModelError, NonFiniteError
from beadwork.frame import Frame
from beadwork.potential.bundle import amend_card, load_card, members_of
from beadwork.potential.engine import Energies
from beadwork.potential.graph import build
from beadwork.potential.load import load
from beadwork.potential.potential import Potential

KINDS = ("triclinic", "tiny", "cluster", "liquid", "lone", "h2")


@pytest.fixture
def frames(shapes):
    """Structures of different sizes, some without any edge."""
    return [replace(shapes.structure(kind, 3), bead=k) for k, kind in enumerate(KINDS)]


@pytest.fixture
def committee(pair):
    """A baseline and four members with different cutoffs and shapes."""
    return pair(5.0, 3.0), [pair(1.0, 3.5, 3), pair(1.4, 4.2, 4), pair(0.5, 3.0, 3, 0.01), pair(0.9, 3.8, 5)]


def single(engine, frames):
    """An engine's answers, one structure at a time: energies, list of forces, virials."""
    answers = [engine.evaluate(build([f], 5.0)) for f in frames]
    return (
        np.array([a.energies[0] for a in answers]),
        [a.forces for a in answers],
        np.array([a.virials[0] for a in answers]),
    )


@pytest.mark.parametrize(("force_alpha", "alpha"), [(None, 1.0), (None, 2.5), (1.3, 2.5)])
def test_sum_and_spread_are_numpys(frames, committee, force_alpha, alpha):
    """Mean, sample deviation and force spread equal NumPy's on members evaluated one structure at a time: the force
    spread has the alpha of forces, and energies, with the members' forces that derive from them, that of energies."""
    baseline, members = committee
    scales = {"alpha": alpha} if force_alpha is None else {"alpha": force_alpha, "energy_alpha": alpha}
    got = Potential(baseline, members, **scales).evaluate(frames, member_forces=True)
    be, bf, bv = single(baseline, frames)
    each = [single(m, frames) for m in members]
    energies = np.array([e for e, _, _ in each])
    virials = np.array([v for _, _, v in each])
    assert np.allclose(got.energies, be + energies.mean(axis=0), rtol=0, atol=1e-10)
    assert np.allclose(got.energy_spread, alpha * energies.std(axis=0, ddof=1), rtol=0, atol=1e-10)
    assert np.allclose(got.virials, bv + virials.mean(axis=0), rtol=0, atol=1e-10)
    assert np.allclose(
        got.spread.members, energies.mean(axis=0) + alpha * (energies - energies.mean(axis=0)), rtol=0, atol=1e-10
    )
    assert np.allclose(got.member_totals, be + got.spread.members, rtol=0, atol=1e-12)
    assert np.allclose(got.member_totals.mean(axis=0), got.energies, rtol=0, atol=1e-10)
    for s in range(len(frames)):
        own = slice(got.ptr[s], got.ptr[s + 1])
        forces = np.array([f[s] for _, f, _ in each])
        assert np.allclose(got.forces[own], bf[s] + forces.mean(axis=0), rtol=0, atol=1e-10)
        spread = (force_alpha or alpha) * np.sqrt(forces.var(axis=0, ddof=1).mean(axis=1))
        assert np.allclose(got.force_spread[own], spread, rtol=0, atol=1e-10)
        assert got.spread.largest[s] == got.force_spread[own].max()
        assert got.force_spread[own][got.spread.atom[s]] == got.spread.largest[s]
        scaled = forces.mean(axis=0) + alpha * (forces - forces.mean(axis=0))
        assert np.allclose(got.member_forces[:, own], scaled, rtol=0, atol=1e-10)
    assert got.energy_spread[3] > 0.01
    assert np.allclose(got.baseline.energies + got.delta.energies, got.energies, rtol=0, atol=1e-12)
    assert set(got.seconds) == {"graph", "reduce", baseline.name, *(m.name for m in members)}


def test_equal_weights_are_no_weights(frames, committee):
    """The weighted formulas reduce to the sample variance for equal weights of any size."""
    baseline, members = committee
    one = Potential(baseline, members).evaluate(frames)
    two = Potential(baseline, members, weights=[7, 7, 7, 7]).evaluate(frames)
    for name in ("energies", "forces", "virials", "energy_spread", "force_spread"):
        assert np.allclose(getattr(one, name), getattr(two, name), rtol=0, atol=1e-12), name


def test_weighted_variance_is_numpys_with_aweights(frames, committee):
    """Weighted mean and variance are those of the docstring; NumPy's cov with aweights has the same definition."""
    baseline, members = committee
    weights = np.array([1.0, 2.0, 3.0, 0.5])
    got = Potential(baseline, members, weights=weights).evaluate(frames, member_forces=True)
    energies = np.array([single(m, frames)[0] for m in members])
    assert np.allclose(got.delta.energies, np.average(energies, axis=0, weights=weights), rtol=0, atol=1e-10)
    variance = [np.cov(energies[:, s], aweights=weights) for s in range(len(frames))]
    assert np.allclose(got.energy_spread**2, variance, rtol=0, atol=1e-10)
    atom = int(got.ptr[3]) + 5
    per_axis = [np.cov(got.member_forces[:, atom, axis], aweights=weights) for axis in range(3)]
    assert np.allclose(got.force_spread[atom], np.sqrt(np.mean(per_axis)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("reference", [{}, {1: 0.07, 8: 2.71}])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 1.0]])
def test_the_weighted_baseline_is_its_formula_and_its_derivatives(frames, committee, weights, reference):
    """The energy is Imbalzano's formula written out again, the atoms' reference energies not weighted, and force and
    virial are its finite differences."""
    baseline, members = committee
    s2, alpha = 0.08**2, 1.3
    potential = Potential(
        baseline,
        members,
        weights=weights,
        alpha=0.4,
        energy_alpha=alpha,
        baseline_uncertainty=0.08,
        reference=reference,
    )
    got = potential.evaluate(frames)
    be = single(baseline, frames)[0]
    energies = np.array([single(m, frames)[0] for m in members])
    w = weights or [1.0] * 4
    mean = np.average(energies, axis=0, weights=w)
    variance = alpha**2 * np.array([np.cov(energies[:, s], aweights=w) for s in range(len(frames))])
    factor = s2 / (s2 + variance)
    assert factor.min() < 0.5  # the spread matters here
    assert factor.max() > 0.9
    lone = np.array([sum(reference.get(z, 0.0) for z in frame.numbers.tolist()) for frame in frames])
    assert np.allclose(got.energies, be + lone + factor * (mean - lone), rtol=0, atol=1e-10)

    def energy(k, positions, cell):
        return potential.evaluate([replace(frames[k], positions=positions, cell=cell)]).energies[0]

    h = 1e-4
    for k in (0, 1, 2, 3):
        frame = frames[k]
        for atom, axis in ((0, 0), (1, 2)):
            step = np.zeros_like(frame.positions)
            step[atom, axis] = h
            up, down = (energy(k, frame.positions + s * step, frame.cell) for s in (1, -1))
            assert abs(-(up - down) / (2 * h) - got.forces[got.ptr[k] + atom, axis]) < 1e-6
        for a, b in ((0, 0), (1, 2)):
            strain = np.zeros((3, 3))
            strain[a, b] = strain[b, a] = h
            up, down = (
                energy(k, frame.positions @ d, frame.cell @ d) for d in (np.eye(3) + strain, np.eye(3) - strain)
            )
            assert abs(-(up - down) / (2 * h) - got.virials[k, a, b] * (1 if a == b else 2)) < 1e-5


def test_what_a_part_alone_does_not_know_is_none(frames, committee):
    """Baseline alone, Δ alone, and one member: what is not known is None, never a number."""
    baseline, members = committee
    alone = Potential(baseline).evaluate(frames)
    assert np.array_equal(alone.energies, alone.baseline.energies)
    assert alone.delta is None
    assert alone.spread is None
    assert alone.member_totals is None
    delta = Potential(None, members).evaluate(frames)
    assert delta.baseline is None
    assert np.array_equal(delta.member_totals, delta.spread.members)
    assert np.allclose(delta.energies, delta.spread.members.mean(axis=0), rtol=0, atol=1e-12)
    one = Potential(baseline, members[:1]).evaluate(frames)
    assert one.energy_spread is None
    assert one.force_spread is None
    assert one.spread is None
    assert np.allclose(one.energies, alone.energies + one.delta.energies, rtol=0, atol=1e-12)
    asked = Potential(None, members).evaluate(frames)
    assert asked.member_forces is None


def test_pieces_change_nothing(frames, committee):
    """A batch that is too large for memory is evaluated in runs of systems, with the same answer."""
    baseline, members = committee
    whole = Potential(baseline, members).evaluate(frames)
    for most in (1, 60, 700):
        seen = []

        class Spy(type(baseline)):
            def evaluate(self, graph, seen=seen):
                seen.append(len(graph.center) if len(graph) > 1 else 0)
                return super().evaluate(graph)

        pieces = Potential(Spy(5.0, 3.0), members, max_edges=most).evaluate(frames)
        assert len(seen) > 1
        assert max(seen) <= most
        assert np.allclose(whole.forces, pieces.forces, rtol=0, atol=1e-11)
        assert np.allclose(whole.energies, pieces.energies, rtol=0, atol=1e-11)
        assert np.allclose(whole.virials, pieces.virials, rtol=0, atol=1e-11)


@pytest.mark.parametrize("where", ["forces", "energies", "virials"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_never_passed_on(frames, committee, pair, where, value):
    """A model that answers NaN stops everything, and the message names model, bead and atom."""

    class Broken(pair):
        def evaluate(self, graph):
            answer = super().evaluate(graph)
            array = getattr(answer, where).copy()
            array[{"forces": graph.ptr[3] + 7, "energies": 3, "virials": 3}[where]] = value
            return replace(answer, **{where: array})

    baseline, members = committee
    sentence = r"the model pair 0\.77 3 3\.5 returned NaN or infinity for bead 3"
    sentence += r" \(force on atom 7\)" if where == "forces" else r" \(energy or virial\)"
    with pytest.raises(NonFiniteError, match=sentence):
        Potential(baseline, [*members, Broken(0.77)]).evaluate(frames)


@pytest.mark.parametrize("uncertainty", [np.inf, 1e-200, 1e200, np.nan])
def test_an_uncertainty_that_makes_no_sense(frames, committee, uncertainty):
    """Its square would be infinity or zero, and the weighted baseline's factor NaN, which i-PI would integrate."""
    baseline, members = committee
    with pytest.raises(ModelError, match=r"uncertainty"):
        Potential(baseline, members, baseline_uncertainty=uncertainty)
    assert np.isfinite(Potential(baseline, members, baseline_uncertainty=1e-6).evaluate(frames).forces).all()


def test_a_sum_that_is_not_finite_is_found(frames, committee):
    """Models that are finite each and whose sum is none, by whatever of ours: it is looked at last, as a whole."""

    class Huge:
        name, cutoff, elements = "huge", 3.5, ()

        def evaluate(self, graph):
            atoms, systems = len(graph.numbers), len(graph)
            return Energies(np.full(systems, 1.5e308), np.zeros((atoms, 3)), np.zeros((systems, 3, 3)))

    with (
        np.errstate(over="ignore"),
        pytest.raises(
            NonFiniteError, match=r"the sum of the models returned NaN or infinity for bead 0 \(energy or vi"
        ),
    ):
        Potential(Huge(), [Huge()]).evaluate(frames)


def test_species_are_checked(frames, pair):
    """An element that some model lacks is named together with that model."""

    class Water(pair):
        elements = (1, 8)

    potential = Potential(pair(1.0), [Water(2.0), Water(3.0)])
    potential.evaluate(frames)
    gold = replace(frames[0], numbers=np.where(frames[0].numbers == 8, 79, 1))
    with pytest.raises(ModelError, match=r"has Au \(atomic number 79\), which the model pair 2\.0 .*knows H, O"):
        potential.evaluate([frames[1], gold])
    with pytest.raises(ModelError, match="Au"):
        potential.check_species([1, 79])
    with pytest.raises(GeometryError, match="bead 0"):
        potential.evaluate([replace(frames[0], positions=frames[0].positions * np.nan)])


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"members": ()}, "no model to evaluate"),
        ({"weights": [1.0]}, "do not fit 2 Δ models"),
        ({"weights": [1.0, -1.0]}, "do not fit 2 Δ models"),
        ({"weights": [1.0, 0.0]}, "leave one Δ model alone"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"energy_alpha": -1.0}, "energy_alpha is -1.0"),
        ({"baseline_uncertainty": 0.1}, "needs a baseline"),
        ({"alpha": np.inf}, "alpha is inf; it must be from 1e-6 to 1e6"),
        ({"energy_alpha": np.nan}, "energy_alpha is nan; it must be from 1e-6 to 1e6"),
        ({"weights": [1e308, 1e308]}, r"weights \[1e\+308, 1e\+308\] do not fit 2 Δ models; .*from 1e-6 to 1e6, or 0"),
        ({"weights": [1e-200, 1e-200]}, "do not fit 2 Δ models"),
        ({"weights": [np.nan, 1.0]}, "do not fit 2 Δ models"),
        ({"weights": [0.0, 0.0]}, "do not fit 2 Δ models"),
    ],
)
def test_what_cannot_be_summed_is_refused(pair, kwargs, sentence):
    """What cannot be summed is refused when it is put together."""
    with pytest.raises(ModelError, match=sentence):
        Potential(None, **{"members": (pair(1.0), pair(2.0)), **kwargs})


def test_bundles_load_as_one_potential(made, shapes):
    """Bundles are loaded as one potential, on the largest cutoff; the same from the package's root, and from ASE."""
    baseline, member = made["invariant"].bundle, made["vector"].bundle
    potential = beadwork.load(baseline, [member], engine="torchscript")
    assert potential.cutoff == 4.5
    assert [c.name for c in potential.cards] == ["invariant", "vector"]
    frame = shapes.structure("liquid", 1)
    one, two = (load(b, engine="torchscript").evaluate([frame]) for b in (baseline, member))
    got = potential.evaluate([frame])
    assert np.allclose(got.forces, one.forces + two.forces, rtol=0, atol=1e-9)
    atoms = frame.to_atoms()
    atoms.calc = beadwork.BeadworkCalculator(potential)
    assert atoms.get_potential_energy() == pytest.approx(got.energies[0], abs=1e-9)
    assert np.allclose(atoms.get_forces(), got.forces, rtol=0, atol=1e-9)
    stress = -got.virials[0] / atoms.get_volume()
    assert np.allclose(atoms.get_stress(voigt=False), stress, rtol=0, atol=1e-12)


def test_calculator_has_the_spread(committee, shapes):
    """Spreads are in the calculator's results; a cluster without a cell has no stress."""
    baseline, members = committee
    potential = Potential(baseline, members)
    frame = shapes.structure("cluster", 1)
    atoms = frame.to_atoms()
    atoms.calc = beadwork.BeadworkCalculator(potential)
    atoms.get_forces()
    got = potential.evaluate([frame])
    assert atoms.calc.results["energy_spread"] == pytest.approx(got.energy_spread[0])
    assert np.allclose(atoms.calc.results["force_spread"], got.force_spread)
    assert "stress" not in atoms.calc.results


def test_settle_says_what_each_engine_is(made, shapes):
    """At the start the server lets every engine choose, and logs a sentence for each."""
    potential = load(made["invariant"].bundle, [made["vector"].bundle], engine="auto")
    said = potential.select_backends(shapes.structure("liquid", 0))
    assert len(said) == 2
    assert all("torchscript" in line for line in said)


def test_models_that_do_not_go_together(made, tmp_path):
    """Members of other elements, another precision, or the same one twice; a baseline with nothing in common."""
    import shutil

    def changed(name, *edits):
        bundle = shutil.copytree(made["vector"].bundle, tmp_path / name)
        text = (bundle / "card.toml").read_text()
        for old, new in edits:
            assert old in text
            text = text.replace(old, new)
        (bundle / "card.toml").write_text(text)
        return bundle

    good = made["vector"].bundle
    import re

    listed = re.search(r"elements = \[.*?\]", (good / "card.toml").read_text(), re.S).group()
    nitrogen = changed("nitrogen", (listed, "elements = [7]"))
    single_precision = changed("single", ('dtype = "float64"', 'dtype = "float32"'))
    with pytest.raises(ModelError, match=r"knows N but .* knows H, O; the members of a committee"):
        load(None, [good, nitrogen])
    with pytest.raises(ModelError, match=r"was trained in float32 but .* in float64"):
        load(None, [good, single_precision])
    with pytest.raises(ModelError, match="no element in common"):
        load(nitrogen, [good])
    for_another = changed("another", ("format = 1", f'format = 1\nbaseline = "sha256:{"ab" * 32}"'))
    with pytest.raises(ModelError, match=r"is the difference to the baseline sha256:ab.*, and .* is sha256:"):
        load(made["invariant"].bundle, [for_another])
    own = load_card(made["invariant"].bundle).hash
    load(made["invariant"].bundle, [changed("own", ("format = 1", f'format = 1\nbaseline = "{own}"'))], "torchscript")
    with pytest.raises(ModelError, match="given twice"):
        load(None, [good, good])
    with pytest.raises(ModelError, match="no model to evaluate"):
        load()


def test_shipped_members_name_their_baseline(tmp_path):
    """Each shipped Δ is the difference to the baseline beside it and is refused with the other one; and what a card
    says of a model does not change the model's hash, by which queues, logs and datasets know it."""
    import shutil

    models = Path(__file__).parents[2] / "models"
    folders = [models / "water-revpbe0-d3", models / "water-highlevel"]
    for folder, other in (folders, folders[::-1]):
        members = members_of([folder])
        baseline = load_card(folder / "baseline")
        assert [load_card(member).about["baseline"] for member in members] == [baseline.hash] * 4
        with pytest.raises(ModelError, match="is the difference to the baseline"):
            load(other / "baseline", [folder])
    shutil.copytree(members[0], tmp_path / "copy")
    assert amend_card(tmp_path / "copy", baseline="sha256:0").hash == load_card(members[0]).hash


def test_load_reads_the_committee_card(made, shapes, tmp_path):
    """alpha and weights of the card beside the members are used, said, and overruled by what is passed."""
    import shutil

    for m in range(2):
        shutil.copytree(made["vector"].bundle, tmp_path / f"delta-{m}")
    (tmp_path / "committee.toml").write_text('alpha = 1.7\nmembers = ["delta-0", "delta-1"]\nweights = [1, 3]\n')
    paths = [tmp_path / "delta-0", tmp_path / "delta-1"]
    potential = load(None, paths, engine="torchscript")
    assert potential.alpha == 1.7
    assert potential.weights.tolist() == [0.25, 0.75]
    assert potential.energy_alpha == 1.7  # a file of before, which knows one
    assert "alpha 1.7" in potential.notes[0]
    both = (tmp_path / "committee.toml").read_text() + "energy_alpha = 3.4\n"
    spread = "[spread_held_out]\nshares = [0.99]\nforce_eV_per_angstrom = [0.2]\n"
    (tmp_path / "committee.toml").write_text(both + spread)
    for given, wanted in (
        ({}, (1.7, 3.4, 0.2)),
        ({"alpha": 0.85}, (0.85, 0.85, 0.1)),
        ({"energy_alpha": 5.0}, (1.7, 5.0, 0.2)),
        ({"alpha": 1.0, "energy_alpha": 2.0}, (1.0, 2.0, 0.2 / 1.7)),
    ):
        known = load(None, paths, engine="torchscript", **given)
        assert (known.alpha, known.energy_alpha, known.usual) == pytest.approx(wanted)
    assert load(None, paths, engine="torchscript", alpha=1.0).alpha == 1.0
    assert load(None, paths, engine="torchscript", weights=[1, 1]).weights.tolist() == [0.5, 0.5]
    part = load(None, paths[:1], engine="torchscript")
    assert part.alpha == 1.0
    assert "lists other members" in part.notes[0]


def test_weighted_baseline_of_real_models():
    """The shipped committee's reference energies (2.7 eV an oxygen) pull nowhere: with half of Δ at stake the forces
    stay about halfway between those of the baseline and of the sum."""
    models = Path(__file__).parents[2] / "models" / "water-highlevel"
    rng = np.random.default_rng(0)
    water = np.array([[0, 0, 0.1173], [0, 0.7572, -0.4692], [0, -0.7572, -0.4692]])
    shaken = [Frame(np.array([8, 1, 1]), water + rng.normal(0, 0.08, (3, 3)), np.zeros((3, 3)), (False,) * 3)]
    whole = load(models / "baseline", [models], "torchscript")
    plain = whole.evaluate(shaken)
    weighted = load(models / "baseline", [models], "torchscript", baseline_uncertainty=float(plain.energy_spread[0]))
    assert weighted.reference[8] == pytest.approx(2.71, abs=0.01)
    got = weighted.evaluate(shaken)
    halfway = plain.baseline.forces + 0.5 * plain.delta.forces
    assert np.abs(got.forces - halfway).max() < 0.3 * np.abs(plain.delta.forces).max()
    weighted.reference.clear()  # what the paper's formula makes of it
    assert np.abs(weighted.evaluate(shaken).forces - halfway).max() > 3 * np.abs(got.forces - halfway).max()
