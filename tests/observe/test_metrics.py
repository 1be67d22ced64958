"""What Prometheus would read, asked for over HTTP and read by its own parser."""

from __future__ import annotations

import math
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from beadwork.config import listen_at, resolve
from beadwork.errors import ConfigError
from beadwork.events import Dropped, Evaluated, FrameKept, Joined, Lost, Note, Waiting
from beadwork.observe.metrics import Metrics
from beadwork.observe.pace import Pace

LOOPBACK, EVERYWHERE = "0100007F", "00000000"  # as /proc/net/tcp has them


def event(step: int) -> Evaluated:
    """Four structures in half a second."""
    return Evaluated("a", step, 4, -1.5, 0.01, 0.02, {"idle": 0.1, "graph": 0.1, "delta-0 (native)": 0.4})


class Facts:
    """What answers, which may change while it runs."""

    committee = "sha256:abc"

    def __call__(self) -> dict[str, Any]:
        return {"engines": ["delta-0 (native)", "delta-1 (native)"], "committee": self.committee}


def scrape(url: str) -> dict[str, float]:
    """Every sample by its name and labels."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        families = list(text_string_to_metric_families(answer.read().decode()))
    assert all(family.documentation for family in families)
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def listening(port: int) -> set[str]:
    """The addresses on which this machine listens at a port, as the kernel has them (IPv4 and IPv6)."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and int(row[1].partition(":")[2], 16) == port}


@pytest.fixture
def pace() -> Pace:
    """Counts for the metrics."""
    return Pace(time_step=0.5, first=100)


@pytest.fixture
def metrics(pace: Pace) -> Iterator[Metrics]:
    """At a free port of loopback."""
    metrics = Metrics(0, pace, 1000, Facts())
    yield metrics
    metrics.close()


def test_every_number_is_the_one_put_in(metrics: Metrics, pace: Pace) -> None:
    """Steps, times by part, spreads, frames and reconnects; nothing known yet is NaN and not 0."""
    before = scrape(metrics.address)
    assert math.isnan(before["beadwork_force_spread_electronvolts_per_angstrom"])
    assert math.isnan(before["beadwork_potential_energy_electronvolts"])
    assert before["beadwork_steps_total"] == 0
    told = [
        *(event(step) for step in range(6)),
        FrameKept(1, 1, 0, 0.1),
        FrameKept(2, 1, 1, 0.1),
        Dropped(3),
        Lost("a", "x", 0),
    ]
    for one in told:
        pace(one)
        metrics(one)
    after = scrape(metrics.address)
    expected = {
        "beadwork_steps_total": 5,
        "beadwork_step": 105,
        "beadwork_total_steps": 1000,
        "beadwork_structures_total": 24,
        "beadwork_frames_kept_total": 2,
        "beadwork_frames_dropped_total": 1,
        "beadwork_reconnects_total": 1,
        "beadwork_force_spread_electronvolts_per_angstrom": 0.02,
        "beadwork_energy_spread_electronvolts": 0.01,
        "beadwork_potential_energy_electronvolts": -1.5,
        "beadwork_evaluation_seconds_count part=graph": 6,
        "beadwork_evaluation_seconds_sum part=delta-0 (native)": 2.4,
        "beadwork_evaluation_seconds_bucket le=0.1 part=idle": 6,
        "beadwork_evaluation_seconds_bucket le=0.3 part=delta-0 (native)": 0,
        "beadwork_committee_info engines=delta-0 (native), delta-1 (native) hash=sha256:abc": 1,
    }
    assert {name: after[name] for name in expected} == pytest.approx(expected)
    assert after["beadwork_last_answer_timestamp_seconds"] > 1.6e9
    assert after["beadwork_process_resident_memory_bytes"] > 1e7


def test_novelty_is_there_once_a_model_knows(metrics: Metrics, pace: Pace) -> None:
    """A gauge for each part and two counters; before, and without such models, no number at all, for 0 would say that
    nothing was new. A new committee that does not know makes it NaN."""

    def seen(**novelty: Any) -> dict[str, float]:
        told = replace(event(1), **novelty)
        pace(told)
        metrics(told)
        return {name: value for name, value in scrape(metrics.address).items() if "new_" in name or "novelty" in name}

    assert seen() == {}
    seen(novelty={"baseline": 3.5, "delta": 0.5}, new_structures=2, new_atoms=6)
    after = seen(novelty={"baseline": 1.5, "delta": 0.25}, new_structures=1, new_atoms=1)
    assert {name: value for name, value in after.items() if not name.endswith("created")} == {
        "beadwork_novelty part=baseline": 1.5,
        "beadwork_novelty part=delta": 0.25,
        "beadwork_new_structures_total": 3,
        "beadwork_new_atoms_total": 7,
    }
    after = seen(novelty={"baseline": 0.5})
    assert math.isnan(after["beadwork_novelty part=delta"])
    assert after["beadwork_new_atoms_total"] == 7


def test_an_ipi_under_way(metrics: Metrics, pace: Pace) -> None:
    """Its step is not known, which is NaN to Prometheus; the steps that this server answered are."""
    for event in (Joined("a"), *(Evaluated("a", step, 4, -1.0, None, None) for step in range(3))):
        pace(event)
        metrics(event)
    seen = scrape(metrics.address)
    assert math.isnan(seen["beadwork_step"])
    assert seen["beadwork_steps_total"] == 2


def test_a_new_committee_shows(pace: Pace) -> None:
    """The info has one hash at a time: the one that answers."""
    facts = Facts()
    metrics = Metrics(0, pace, 1000, facts)
    facts.committee = "sha256:def"
    metrics(Note("taken up"))
    names = [name for name in scrape(metrics.address) if name.startswith("beadwork_committee_info")]
    metrics.close()
    assert [name.endswith("hash=sha256:def") for name in names] == [True]


def test_loopback_unless_told_otherwise(metrics: Metrics, pace: Pace) -> None:
    """The kernel says on which address it listens; after closing, on none."""
    assert listening(metrics.port) == {LOOPBACK}
    other = Metrics("0.0.0.0:0", pace, 1000, Facts())
    assert listening(other.port) == {EVERYWHERE}
    other.close()
    assert listening(other.port) == set()


def test_closing_leaks_nothing(pace: Pace) -> None:
    """No descriptor is left, and nobody answers."""
    Metrics(0, pace, 1000, Facts()).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        metrics = Metrics(0, pace, 1000, Facts())
        scrape(metrics.address)
        metrics.close()
        with pytest.raises(urllib.error.URLError):
            scrape(metrics.address)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_port_in_use_is_named(metrics: Metrics, pace: Pace) -> None:
    """One sentence, before the run begins."""
    with pytest.raises(ConfigError, match=f"127.0.0.1:{metrics.port}"):
        Metrics(metrics.port, pace, 1000, Facts())


@pytest.mark.parametrize(
    ("where", "read"),
    [
        ("9100", ("127.0.0.1", 9100)),
        (9100, ("127.0.0.1", 9100)),
        ("0.0.0.0:9100", ("0.0.0.0", 9100)),
        ("[::1]:9100", ("::1", 9100)),
    ],
)
def test_an_address_is_a_port_or_host_and_port(where: str | int, read: tuple[str, int]) -> None:
    """A port, or a host and a port; a number in a TOML file too."""
    assert listen_at(where) == read


@pytest.mark.parametrize("where", ["", "here", "host:", "70000", -1, "١", True])
def test_what_is_no_address_is_refused_with_the_options_name(where: object) -> None:
    """Refused with the option's name before anything is loaded."""
    with pytest.raises(ConfigError, match="metrics is"):
        resolve({"simulation": "x.xml", "baseline": "b", "metrics": where})


def test_frames_that_wait(metrics: Metrics) -> None:
    """As many as the last event says; 0 again when the queue can be written."""
    for frames, why in ((3, "locked"), (5, "locked"), (0, "")):
        metrics(Waiting(frames, why))
        assert scrape(metrics.address)["beadwork_frames_waiting"] == frames
