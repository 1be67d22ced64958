"""A committee on one trunk as it is served: forces of all heads now and then, and where something happens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beadwork.config import ServeConfig
from beadwork.errors import ConfigError
from beadwork.events import Moment
from beadwork.frame import Frame
from beadwork.harvest.keeper import Keeper
from beadwork.harvest.queue import Queue
from beadwork.ipi.transport import Address, Line
from beadwork.potential.analytic import Harmonic
from beadwork.potential.potential import Potential
from beadwork.potential.response import Role
from beadwork.serve.assemble import _between
from beadwork.serve.reply import extra_keys, extras
from beadwork.serve.service import Service
from support.response import Charges
from support.trunk import Springs


def frames(scale: float = 1.0, count: int = 2) -> list[Frame]:
    """Beads of two oxygen atoms about the origin."""
    positions = np.random.default_rng(0).normal(size=(count, 2, 3))
    return [Frame(np.array([8, 8]), scale * x, np.zeros((3, 3)), (False,) * 3) for x in positions]


def service(trunk: Springs, every: int = 4, **more: bool) -> Service:
    """One that is served, with a baseline of its own."""
    potential = Potential(Harmonic(2.0), [trunk], alpha=1.5, energy_alpha=2.0)
    line = Line(Address(Path("x")))
    return Service(line, potential, np.array([8, 8]), 2, force_spread_every=every, **more)


def test_what_costs_nothing_is_said_at_every_evaluation() -> None:
    """Sum, heads' energies and their spread are the same to the last digit without the heads' forces, which are NaN."""
    trunk = Springs()
    potential = Potential(Harmonic(2.0), [trunk], alpha=1.5, energy_alpha=2.0)
    quick = potential.evaluate(frames(), force_spread=False)
    assert trunk.opened == []
    whole = potential.evaluate(frames())
    assert trunk.opened == [0, 1, 2]
    for name in ("energies", "forces", "virials"):
        np.testing.assert_allclose(getattr(quick, name), getattr(whole, name), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(quick.spread.members, whole.spread.members, rtol=1e-13)
    np.testing.assert_allclose(quick.spread.energy, whole.spread.energy, rtol=1e-12)
    assert not quick.spread.of_forces
    assert np.isnan(quick.spread.force).all()
    assert np.isnan(quick.spread.largest).all()
    assert whole.spread.of_forces
    for system in (0, 1):
        wanted = whole.spread.force_of(system, whole.ptr)
        np.testing.assert_allclose(quick.spread.force_of(system, quick.ptr), wanted, rtol=1e-13)
        np.testing.assert_array_equal(wanted, whole.spread.force[whole.ptr[system] : whole.ptr[system + 1]])


def test_heads_are_opened_once_whatever_potentials_they_are_part_of() -> None:
    """A committee that was verified beside Δ alone is activated with its heads open: a step does not read files, which
    may be gone by then, and two addresses have one copy of each."""
    trunk = Springs()
    fresh = Potential(None, [trunk], alpha=1.5)
    served = Potential(Harmonic(2.0), [Springs((3.0, 4.0, 6.0))])
    wanted = served.with_committee(fresh).without_baseline().evaluate(frames())
    assert trunk.opened == [0, 1, 2]
    active = served.with_committee(fresh)
    answer = active.evaluate(frames())
    assert trunk.opened == [0, 1, 2]
    np.testing.assert_allclose(answer.delta.forces, wanted.forces, rtol=1e-14)
    np.testing.assert_allclose(answer.spread.force, wanted.spread.force, rtol=1e-14)
    springs = (answer.forces - answer.baseline.forces)[0] / answer.baseline.forces[0]
    np.testing.assert_allclose(springs, np.mean(trunk.strengths) / 2.0, rtol=1e-12)
    assert [one.evaluate(frames()).spread.of_forces for one in (active, active.without_baseline())] == [True] * 2
    assert trunk.opened == [0, 1, 2]


def test_forces_of_all_heads_are_asked_for_every_so_often() -> None:
    """At the first evaluation, then every fourth; a new committee begins anew; separate members have them always."""
    trunk = Springs()
    served = service(trunk)
    known = [served.evaluate(frames()).spread.of_forces for _ in range(9)]
    assert known == [True, False, False, False, True, False, False, False, True]
    assert trunk.evaluations == 9
    assert trunk.asked == 3
    served.potential = Potential(None, [Springs()])
    assert [served.evaluate(frames()).spread.of_forces for _ in range(2)] == [True, False]
    served.potential = Potential(None, [Harmonic(1.0), Harmonic(2.0)])
    assert all(served.evaluate(frames()).spread.of_forces for _ in range(3))


@pytest.mark.parametrize("parts", [[2], [1, 1]])
def test_forces_of_all_beads_are_looked_at_however_they_come(parts: list[int]) -> None:
    """Bead by bead, a look at every fourth evaluation would always meet the same of two beads: it lasts for the ring,
    and costs the same as where the ring comes at once. Beads that are in one place at step 0 are one."""
    served = service(Springs())
    known = []
    for _ in range(9):
        left = frames()
        for count in parts:
            known += [served.evaluate(left[:count]).spread.of_forces] * count
            left = left[count:]
    assert known == 2 * ([True] * 2 + [False] * 6) + [True] * 2
    served = service(Springs())
    known = [served.evaluate(frames(count=count)).spread.of_forces for count in (1, *[2] * 9)]
    assert known == [True, True, False, False, False, True, False, False, False, True]


def test_forces_are_asked_for_out_of_turn_where_energies_part() -> None:
    """An energy spread that has more than doubled is looked into before the answer leaves: the thresholds see it."""
    served = service(Springs())
    assert served.evaluate(frames()).spread.of_forces
    assert not served.evaluate(frames(1.2)).spread.of_forces  # 1.44 times the energy
    found = served.evaluate(frames(2.0)).spread
    assert found.of_forces
    assert np.isfinite(found.largest).all()
    assert not served.evaluate(frames(2.0)).spread.of_forces, "the count begins anew, at the new spread"


def test_members_forces_and_a_weighted_baseline_need_all_heads() -> None:
    """Whoever asks for every member's forces, or weighs the baseline by them, has them at every evaluation."""
    served = service(Springs(), member_forces=True)
    assert all(served.evaluate(frames()).member_forces is not None for _ in range(3))
    weighted = Potential(Harmonic(2.0), [Springs()], baseline_uncertainty=0.3)
    separate = Potential(Harmonic(2.0), [Harmonic(k) for k in Springs().strengths], baseline_uncertainty=0.3)
    one, two = weighted.evaluate(frames(), force_spread=False), separate.evaluate(frames())
    np.testing.assert_allclose(one.forces, two.forces, rtol=1e-13)
    assert one.spread.of_forces


def test_extras_have_the_same_keys_at_every_step() -> None:
    """What was not evaluated is null, as i-PI wants it: the set of keys must not change."""
    served = service(Springs())
    whole, quick = (
        [json.loads(extra) for extra in extras(served.evaluate(frames()), served.potential)] for _ in range(2)
    )
    for one, two in zip(whole, quick, strict=True):
        assert set(one) == set(two) == set(extra_keys(served.potential, False))
        assert one["force_spread_max"] > 0
        assert two["force_spread_max"] is two["force_spread_atom"] is None
        assert {key for key in one if one[key] != pytest.approx(two[key])} == {"force_spread_max", "force_spread_atom"}


def test_a_frame_that_is_kept_has_its_force_spread(tmp_path: Path) -> None:
    """Between, energies (and novelty) say which frame is worth a label; its forces are then evaluated, for it alone,
    and one that they show to be beyond the upper mark is passed over."""
    trunk = Springs()
    potential = Potential(Harmonic(2.0), [trunk])
    quick, whole = potential.evaluate(frames(), force_spread=False), potential.evaluate(frames())
    trunk.asked = 0
    order = whole.spread.largest.argsort()
    between = float(whole.spread.largest.mean())
    assert whole.spread.energy.argsort().tolist() == order.tolist()
    config = ServeConfig(
        queue=str(tmp_path / "q.db"), keep_force=[1e-9, between], keep_energy=[1e-9], keep_novelty=np.inf, cooldown=0
    )
    seen = []
    keeper = Keeper(config, np.inf, "c" * 64, seen.append)
    keeper("x", Moment(3), frames(), quick)
    keeper.close()
    assert trunk.asked == 2, "one evaluation of each frame that was looked into"
    (row,) = Queue(tmp_path / "q.db").rows()
    calm = int(order[0])
    np.testing.assert_allclose(row.kept.force_spread, whole.spread.force_of(calm, whole.ptr), rtol=1e-12)
    assert row.kept.why == ("spread",)
    (above,) = (event for event in seen if type(event).__name__ == "PassedOver")
    assert (above.why, above.frames) == ("above", 1)
    assert above.force_spread == pytest.approx(whole.spread.largest.max(), rel=1e-12)
    seen.clear()
    keeper = Keeper(replace(config, cooldown=5), np.inf, "d" * 64, seen.append)
    keeper.selector.seed([], frames())
    keeper("x", Moment(4), frames(), quick)
    keeper.close()
    (alike,) = (event for event in seen if type(event).__name__ == "PassedOver")
    assert (alike.why, alike.frames, alike.force_spread) == ("alike", 2, None), "no forces were asked for: not 0"


def test_once_in_no_evaluations_is_refused() -> None:
    """0 would be never."""
    with pytest.raises(ConfigError, match="force-spread-every"):
        ServeConfig(simulation="x.xml", delta=["d"], force_spread_every=0).check()


def test_it_is_said_what_is_looked_at_between() -> None:
    """Whoever serves a trunk reads how often the forces of all heads are asked for; with them always, nothing."""
    (said,) = _between(service(Springs(), every=7))
    assert said.startswith("3 members on one trunk: their spread of forces is evaluated every 7 evaluations")
    separate = service(Springs())
    separate.potential = Potential(None, [Harmonic(1.0), Harmonic(2.0)])
    always = service(Springs(), every=1)
    asked = service(Springs(), member_forces=True)
    assert _between(separate) == _between(always) == _between(asked) == []


def test_a_dipole_that_jumps_is_known() -> None:
    """Of atoms that i-PI folds the dipole by oxidation numbers jumps, for which no spectrum is made of it later; of
    unfolded ones, of a cluster, and of one that is a sum over neighbourhoods it does not."""
    charges = Charges({8: -2.0, 1: 1.0}, 0.0)
    cell = 9.0 * np.eye(3)
    for of_images, folded, periodic, jumps in (
        (True, cell, True, True),
        (False, cell, True, False),
        (True, None, True, False),
        (True, cell, False, False),
    ):
        charges.of_images = of_images
        potential = Potential(Harmonic(2.0), also=[Role("dipole", (charges,), np.ones(1))])
        one = Service(Line(Address(Path("x"))), potential, np.array([8, 8]), 2, folded=folded, periodic=periodic)
        assert one.dipole_jumps == jumps
    assert not service(Springs()).dipole_jumps
