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
    assert "21.0 (9.0 to 22.0) | 3 | 10 | 20 | shown" in line
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
