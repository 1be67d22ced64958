"""The search for the cheapest plan finds what trying all of them finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from beadwork.doctor import search as module
from beadwork.doctor.harmonic import WAVENUMBER, Modes, Plan, stable
from beadwork.doctor.search import Cost, Costs, Search

#: seconds; of baseline and Δ an equal part
COSTS = Costs(Cost(0.002, 0.02), Cost(0.001, 0.01), Cost(0.001, 0.01))


@pytest.fixture
def water(monkeypatch: pytest.MonkeyPatch) -> Modes:
    """Bends and stretches, a few per cent of them Δ's; few plans to choose from."""
    monkeypatch.setattr(module, "BEADS", (1, 16, 64))
    monkeypatch.setattr(module, "TIMESTEPS", (0.5, 1.0))
    monkeypatch.setattr(module, "INNER", (1, 2))
    omega2 = (np.array([200, 700, 1600, 3500]) * WAVENUMBER) ** 2
    return Modes(
        omega2, 0.03 * omega2, {"H": np.full(4, 0.25), "O": np.array([0.6, 0.3, 0.05, 0.05])}, {"H": 2, "O": 1}
    )


def test_the_cheapest_that_hold(water: Modes) -> None:
    """Of each kind it is the cheapest plan that holds and is stable, as when all are judged."""
    search = Search(water, COSTS, 300)
    found = search.cheapest(0.03, 0.09)
    assert [judged.seconds for judged in found] == sorted(judged.seconds for judged in found)
    most = float(np.abs(water.delta2).max())
    expected = {}
    for plan in search.plans():
        held = search.judge(plan).holds(0.03, 0.09) and stable(plan, 300, search.highest, most)
        if held and (plan.springs, plan.apart) not in expected:
            expected[plan.springs, plan.apart] = search.costs.of(plan)
    assert {(j.plan.springs, j.plan.apart): j.seconds for j in found} == expected
    assert {"eco", "ordinary"} == {judged.plan.springs for judged in found}


def test_errors_that_cancel_are_not_believed(water: Modes) -> None:
    """Beads lower an energy and a time step raises it: what is judged is their sum without signs."""
    judged = Search(water, COSTS, 300).judge(Plan(16, 1.0))
    assert abs(judged.errors["kinetic H"]) < 0.8 * judged.judged["kinetic H"]
    assert not judged.holds(abs(judged.errors["kinetic H"]), np.inf)


def test_a_step_of_delta_holds_for_the_most_of_delta(water: Modes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 4 fs that is stable with what the vibrations have of Δ is not taken where Δ alone has more of it."""
    for name, values in (("BEADS", (1,)), ("TIMESTEPS", (0.5,)), ("INNER", (1, 8))):
        monkeypatch.setattr(module, name, values)
    alone = replace(water, most=0.5 * float(water.omega2.max()))
    for modes, steps in ((water, [8, 1]), (alone, [1])):
        assert [judged.plan.inner for judged in Search(modes, COSTS, 300).cheapest(1, 1)] == steps


def test_one_forcefield_has_one_time_step(water: Modes) -> None:
    """Without two parts whose times are known, no plan takes them apart."""
    assert not any(plan.apart for plan in Search(water, Costs(Cost(0, 0.02)), 300).plans())


def test_what_a_femtosecond_costs() -> None:
    """By hand: the sum once a step, or the baseline at each inner step and Δ's beads at the outer ones."""
    assert COSTS.of(Plan(16, 0.5)) == pytest.approx((0.002 + 16 * 0.02) / 0.5)
    assert COSTS.of(Plan(16, 0.5, inner=4, contracted=4)) == pytest.approx((4 * 0.161 + 0.041) / 2.0)
