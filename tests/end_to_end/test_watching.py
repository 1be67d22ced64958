"""A real run, looked at from another shell and over HTTP, while it lives and after it has died."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from beadwork.cli import main
from beadwork.observe.record import read_about
from beadwork.potential.bundle import committee_hash, load_card


def until(condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def scrape(url: str) -> dict[str, float]:
    """Every sample by name and part."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        f"{sample.name} {sample.labels.get('part', sample.labels.get('hash', ''))}".strip(): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def listening(port: int) -> set[str]:
    """The addresses (as /proc/net/tcp has them) on which this machine listens at a port."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and int(row[1].partition(":")[2], 16) == port}


@pytest.mark.parametrize("written", [False, True])
def test_a_server_that_comes_in_the_middle(ipi, models, start, serve, tmp_path, capsys, written) -> None:
    """The second server of a run counts its own steps and says so; nothing is drawn or told at a step made up. Where
    i-PI writes its step on this machine, it is i-PI's from the next one on."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4, latency=1e-3)], steps=40)
    run = run.write()
    text = run.path.read_text().replace("pbc='False'", "pbc='True'")
    # i-PI writes one file for this property and that, and none tells a step but with `step`
    text = text if written else re.sub(r"<checkpoint.*?/>", "", text.replace("[ step, ", "[ "))
    run.path.write_text(text)
    process = start.ipi(run)
    first = start.beadwork("serve", run, "--baseline", models.baseline)
    record = run.folder / "beadwork.out"
    until(lambda: record.exists() and len(record.read_text().splitlines()) > 8, "it does not answer")
    first.send_signal(signal.SIGTERM)
    first.wait(ipi.PATIENCE)
    before = json.loads((run.folder / "summary.json").read_text())["steps"]
    assert "joined" not in (run.folder / "beadwork.out").read_text()
    assert serve(run, "--baseline", models.baseline) == 0
    assert process.wait(ipi.PATIENCE) == 0
    said = capsys.readouterr().err
    assert ("i-PI was under way when this server connected" in said) != written
    assert main(["status", str(run.folder)]) == 1
    if written:
        assert "step 40 of 40" in capsys.readouterr().out
        lines = [line.split() for line in record.read_text().splitlines() if line[0] != "#"]
        steps = [line[0] for line in lines]
        assert set(steps[: steps.index("40")]) - {"nan"} == {str(step) for step in range(int(steps[1]), 40)}
        ours = json.loads((run.folder / "summary.json").read_text())["steps"]
        assert ours == 40 - int(next(step for step in steps if step != "nan")) + 1
        return
    shown = capsys.readouterr().out
    steps = int(re.search(r"(\d+) steps since this server connected", shown).group(1))
    # the last answer of the first server may have been lost with it, so that the second gives it again
    assert 40 - before - 2 <= steps <= 40 - before
    assert read_about(record)["joined"]


@pytest.mark.parametrize(
    ("command", "how"), [("serve", signal.SIGKILL), pytest.param("run", signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_seen_from_outside(ipi, models, start, tmp_path, capsys, command, how) -> None:
    """`beadwork status` and Prometheus tell of the run that i-PI's own output tells of, and of how it ended."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4, latency=1e-3)], steps=100_000).write()
    options = ["--baseline", models.baseline, "--delta", *models.delta, "--metrics", "0", "--out", "ours"]
    options += ["--queue", "q.db", "--keep-force", "0", "--cooldown", "5", "--distance", "1e-9"]
    if command == "serve":  # an i-PI of our own would outlive a kill
        start.ipi(run)
    process = start.beadwork(command, run, *options)
    ours = run.folder / "ours"

    def status() -> tuple[int, str]:
        code = main(["status", str(ours)])
        both = capsys.readouterr()
        return code, both.out + both.err

    until(lambda: (ours / "status.json").exists(), "no status")
    code, said = status()  # from before its models are loaded on
    assert (code, "waits for its models to load" in said) == (0, True)
    until(lambda: (match := re.search(r"step (\d+) of", status()[1])) is not None and int(match[1]) > 5, "no step")
    assert process.poll() is None, start.log(process)
    code, said = status()
    assert code == 0
    assert f"running: process {process.pid} on" in said
    for words in ("of 100000", "ns/day", "eV/Å", "frames kept", "i-PI", "models", "graph", "last result"):
        assert words in said
    cards = [load_card(bundle).hash for bundle in (models.baseline, *models.delta)]
    assert f"committee: {committee_hash(cards)}" in said

    url = re.search(r"http://127\.0\.0\.1:(\d+)/metrics", start.log(process))
    assert url is not None, start.log(process)
    assert listening(int(url[1])) == {"0100007F"}
    first, before = scrape(url[0]), len((run.folder / "run.out").read_text().splitlines())
    until(lambda: scrape(url[0])["beadwork_steps_total"] > first["beadwork_steps_total"] + 20, "no more steps")
    second, after = scrape(url[0]), len((run.folder / "run.out").read_text().splitlines())
    # i-PI writes a line a step: what it counts, we count
    assert second["beadwork_steps_total"] - first["beadwork_steps_total"] == pytest.approx(after - before, abs=5)
    # asked for in the midst of an event, one of them has it already
    assert second["beadwork_step"] == pytest.approx(second["beadwork_steps_total"], abs=1)
    assert second["beadwork_structures_total"] == pytest.approx(4 * second["beadwork_steps_total"], abs=5)
    assert second["beadwork_frames_kept_total"] > 0
    assert second["beadwork_force_spread_electronvolts_per_angstrom"] > 0
    assert second[f"beadwork_committee_info {committee_hash(cards)}"] == 1
    graph = second["beadwork_evaluation_seconds_count graph"]
    assert graph == second["beadwork_evaluation_seconds_count idle"] >= second["beadwork_steps_total"]

    process.send_signal(how)
    process.wait(60)
    code, said = status()
    assert code == 1
    if how == signal.SIGTERM:
        assert "with exit code 143" in said
    else:
        assert f"dead: process {process.pid} on" in said
        assert "ended without writing its end" in said
    assert re.search(r"step (\d+) of 100000", said) is not None
    with pytest.raises(urllib.error.URLError):
        scrape(url[0])


@pytest.mark.slow
def test_a_port_in_use_ends_before_ipi_is_started(ipi, models, start, tmp_path) -> None:
    """One sentence and the code of a wrong option; a run of weeks is not begun without what was asked for."""
    import socket

    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4, latency=1e-3)], steps=3).write()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start.beadwork("run", run, "--baseline", models.baseline, "--metrics", port)
        assert process.wait(ipi.PATIENCE) == 2
    assert f"metrics cannot be served at 127.0.0.1:{port}" in start.log(process)
    assert "Traceback" not in start.log(process)
    assert not (run.folder / "run.out").exists()
