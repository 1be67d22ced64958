"""The benchmark's own machinery: figures that are to be believed need a harness that is."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other from their own folder."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in set(sys.modules) - before:
        if (
            getattr(sys.modules[name], "__file__", None)
            and BENCHMARKS in Path(sys.modules[name].__file__ or "").parents
        ):
            del sys.modules[name]


def results(**rounds: list[dict[str, list[float]]]) -> dict[str, Any]:
    """A results file with these rounds."""
    from run import TOLERANCE, machine
    from system import Plan

    return {
        "date": "2026-01-01T00:00+00:00",
        "plan": json.loads(json.dumps(Plan().as_json())),
        "machine": machine(),
        "settings": {},
        "parity": {},
        "tolerance": TOLERANCE,
        "errors": {"P4": "no step in 240 s"},
        "rounds": rounds,
    }


def test_ratio_is_the_median_over_rounds_of_ratios_of_medians(tmp_path: Path) -> None:
    """Rounds that lack one of the two do not count, and a slow machine in one round cancels."""
    from report import report

    loop = [
        {"P1": [20.0, 21.0, 90.0], "native": [1.0, 1.0, 5.0]},  # 21
        {"P1": [44.0, 44.0, 44.0], "native": [2.0, 2.0, 2.0]},  # 22, both twice as slow
        {"P1": [9.0, 9.0, 9.0], "native": [1.0, 1.0, 1.0]},  # 9
        {"native": [1.0, 1.0, 1.0]},
    ]
    file = tmp_path / "cpu.json"
    file.write_text(json.dumps(results(loop=loop, committee=[], wire=[])))
    text = report(file)
    line = next(line for line in text.splitlines() if "P1 i-pi-py_driver" in line)
    assert "21.0 (9.0 to 22.0) | 3 | 14 | 20 | shown" in line
    assert "P2 the same, batched, i-PI's defaults | 1000 | – | not measured" in text
    assert "- P4: no step in 240 s" in text
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    assert file.with_suffix(".md").read_text() == text


def test_nothing_names_the_machine() -> None:
    """What is recorded says processor and versions, and no host name or path."""
    import platform

    from run import machine

    said = json.dumps(machine())
    assert platform.node() not in said
    assert "/" not in said.replace(machine()["processor"], "")


def test_peers_take_turns_with_a_real_ipi(tmp_path: Path) -> None:
    """Two peers, stopped and woken in turns, take the same path and lose no step."""
    import peers
    from system import Size

    size = Size(beads=2, waters=2, members=2)
    running = []
    for name, build in (("gas", peers.gas), ("zero", peers.ours_zero)):
        place = peers.Place(tmp_path / name, size, [], [], f"beadwork-test-{tmp_path.parent.name}-{name}")
        running.append(peers.Peer(name, place, peers.Setting(1), build, 30.0))
    with peers.running(running):
        for peer in running:
            peer.start()
            assert not peer.forces().any()
        for _ in range(2):
            for peer in running:
                seconds = peer.turn(3, warm_up=2)
                assert len(seconds) == 3
                assert min(seconds) > 0
                stopped = len(peer.properties())
                assert stopped >= 1 + 2 + 3
        one, two = (peer.properties() for peer in running)
        last = min(len(one), len(two))
        np.testing.assert_array_equal(one[:last], two[:last])
        np.testing.assert_array_equal(one[:, 0], np.arange(len(one)))
    assert all(not list(Path("/tmp").glob(f"ipi_{peer.place.address}*")) for peer in running)


def test_a_peer_that_dies_is_told_of(tmp_path: Path) -> None:
    """Its last words come without paths, and the others could go on."""
    import peers
    from system import Size

    def broken(place: Any, setting: Any) -> Any:
        parts = peers.gas(place, setting)
        code = "raise SystemExit('lost /some/where/model.pt')"
        return peers.Parts(parts.forcefields, parts.forces, [[sys.executable, "-c", code]])

    place = peers.Place(tmp_path / "x", Size(beads=2, waters=2), [], [], f"beadwork-test-{tmp_path.parent.name}-x")
    peer = peers.Peer("broken", place, peers.Setting(1), broken, 30.0)
    with peers.running([peer]), pytest.raises(peers.PeerError, match=r"code 1: client-0: lost model\.pt"):
        peer.start()


def test_busy_time_is_a_union() -> None:
    """Kernels that overlap on several streams are not counted twice."""
    from gpu import busy

    assert busy([(0.0, 2.0), (1.0, 3.0), (1.5, 1.8), (5.0, 6.0)]) == 4.0
    assert busy([]) == 0.0


@pytest.mark.slow
def test_gpu_logic_on_the_cpu(tmp_path: Path) -> None:
    """Checks come before times, and what fails is recorded while the rest goes on."""
    from gpu import TINY, Gpu, replace

    sitting = Gpu(replace(TINY, members=1), tmp_path / "gpu.json", tmp_path, 1)
    sitting.attempt("torchscript", sitting.engine, "torchscript")
    sitting.attempt("nonsense", sitting.engine, "nonsense")
    data = json.loads((tmp_path / "gpu.json").read_text())
    assert data["device"].startswith("CPU")
    found = data["torchscript"]
    assert 0 < found["force_error_eV_A"] < 1e-3 * found["largest_force_eV_A"]
    assert min(found["seconds"], found["committee_seconds"]) > 0
    assert "nonsense" in data["errors"]["nonsense"]
    assert "nonsense" not in data


def test_noise_that_is_taken_from_kinetic_energies_is_none_of_the_average() -> None:
    """Where all molecules are one harmonic vibrator nothing fluctuates any more, and what is left is the exact average;
    where they are of two kinds there is less noise, and the average is theirs. Hydrogen's is not oxygen's."""
    from converged_water import kinetic_energies

    from beadwork.doctor.curvature import PER_DALTON
    from beadwork.doctor.harmonic import BOLTZMANN, Plan, springs

    rng = np.random.default_rng(1)
    frequencies, kt = springs(Plan(4, 0.5), 300.0), BOLTZMANN * 300
    squares = frequencies[1:] ** 2 / PER_DALTON

    def molecule(stiffest: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Samples (F, P - 1, 9) of x and g, and the exact kinetic energies of H and O."""
        curvature = rng.normal(size=(9, 9))
        curvature = curvature @ curvature.T
        curvature *= stiffest / np.linalg.eigvalsh(curvature).max()
        inverse = np.linalg.inv(squares[:, None, None] * np.eye(9) + curvature)
        x = np.stack([rng.multivariate_normal(np.zeros(9), 4 * kt * one, size=400) for one in inverse], axis=1)
        gain = np.diag((curvature @ inverse).sum(axis=0))
        return x, -x @ curvature, 1.5 * kt + kt / 2 * np.array([gain[3:].sum() / 2, gain[:3].sum()])

    stiff, soft = molecule(50.0), molecule(20.0)  # eV/Å²/dalton; 3700 and 2300 cm^-1
    for kinds, left in (([stiff], 1e-10), ([stiff, soft], 0.8)):
        samples = list(zip(*(np.stack(parts, axis=1) for parts in list(zip(*kinds, strict=True))[:2]), strict=True))
        plain, less = kinetic_energies(samples, frequencies, 300.0)
        exact = np.mean([kind[2] for kind in kinds], axis=0)
        assert (less.std(axis=0) < left * plain.std(axis=0)).all()
        for found in (plain, less):
            bars = found.std(axis=0) / np.sqrt(len(found))
            assert (np.abs(found.mean(axis=0) - exact) < 4 * bars + 1e-10).all()
            assert (bars < 0.03 * exact).all()
