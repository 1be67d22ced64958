"""The page about a run: its figures against what was put into the folder, and every piece missing in turn."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ipi.engine.atoms import Atoms
from ipi.engine.cell import Cell
from ipi.utils.io import print_file

from beadwork.cli import main
from beadwork.events import Evaluated, FrameKept
from beadwork.frame import Frame
from beadwork.harvest import row as queued
from beadwork.harvest.queue import Queue
from beadwork.observe.pace import Pace
from beadwork.observe.record import Record
from beadwork.observe.status import StatusFile
from beadwork.report import panels, sections
from beadwork.report.run import read_run
from beadwork.report.verdict import verdict
from beadwork.report.write import report
from beadwork.units import BOHR

SECTIONS = [
    "headline",
    "averages",
    "energies",
    "temperature",
    "spread-of-the-committee",
    "spread-by-element",
    "frames-kept",
    "radial-distribution-functions",
    "where-the-time-goes",
]
BEADS, STEPS = 2, 6
CELL = 8.0
COLUMNS = ["step", "time{femtosecond}", "conserved{electronvolt}", "temperature{kelvin}", "potential{electronvolt}"]
NUMBERS = [8, 1, 1] * 8


def positions(seed: int) -> np.ndarray:
    """Waters on a grid, shaken."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3) * 4.0
    molecule = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    return (grid[:, None] + molecule).reshape(-1, 3) + rng.normal(0, 0.05, (24, 3))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of six steps, as beadwork's own writers and i-PI's would leave it."""
    folder = tmp_path_factory.mktemp("report") / "run"
    about = {
        "simulation": "input.xml",
        "simulation_sha256": "f" * 64,
        "directory": ".",
        "outputs": "simulation",
        "properties": {"simulation.out": {"stride": 1, "columns": COLUMNS}},
        "queue": "queue.db",
        "first_step": 0,
        "time_step_fs": 0.5,
        "temperature_K": 300.0,
        "beads": BEADS,
        "periodic": True,
        "plain_mean": True,
        "models": {"models/baseline": "sha256:" + "a" * 64, "models/<b>delta</b>": "sha256:" + "b" * 64},
        "started": 1e9,
    }
    record = Record(folder, ["O", "H"], about)
    queue = Queue(folder / "queue.db", create=True)
    for step in range(STEPS + 1):
        seconds = {"idle": 0.05, "baseline (torchscript, float64)": 0.15}
        spread = 0.01 * (step + 1)
        record(Evaluated("s", step, BEADS, -1.0, 0.003, spread, seconds, {"O": spread / 2, "H": spread / 3}))
        if step % 2:
            row = queue.add(kept(step, spread, "f" * 64))
            record(FrameKept(row or 0, step, 0, spread))
    queue.add(kept(99, 0.9, "e" * 64))  # of another run
    record.close(record.summary(done=STEPS, each=BEADS))
    lines = [f"# column {k:3d}     --> {name} : words" for k, name in enumerate(COLUMNS, 1)]
    lines += [f"{k} {0.5 * k} {-9 + 0.001 * k} {290 + k} {-10 + 0.1 * k}" for k in range(STEPS + 1)]
    (folder / "simulation.out").write_text("\n".join(lines) + "\n")
    for bead in range(BEADS):
        with open(folder / f"simulation.positions_{bead}.xyz", "w") as file:
            for step in range(0, STEPS + 1, 2):
                atoms = Atoms(len(NUMBERS))
                atoms.names = np.array([{8: "O", 1: "H"}[z] for z in NUMBERS])
                atoms.q = positions(10 * step + bead).ravel() / BOHR
                title = f"Step:  {step:10d}  Bead:   {bead:5d} "
                units = {"units": "angstrom", "cell_units": "angstrom"}
                cell = Cell(h=np.eye(3) * CELL / BOHR)
                print_file("xyz", atoms, cell, file, title=title, key="positions", dimension="length", **units)
        energies = [
            f" #EXTRAS(committee_pot)# Step:  {step:10d} \n {-17 - 1e-4 * step:.8e} {-17 + 1e-4 * step:.8e}\n"
            for step in range(0, STEPS + 1, 2)
        ]
        (folder / f"simulation.committee_{bead}").write_text("".join(energies))
    return folder


def kept(step: int, spread: float, simulation: str) -> queued.KeptFrame:
    """A frame in the queue whose fifth atom, a hydrogen, is the most uncertain."""
    frame = Frame(np.array(NUMBERS), positions(step), np.eye(3) * CELL, bead=step % BEADS)
    spreads = np.full(len(NUMBERS), spread / 10)
    spreads[4] = spread
    return queued.KeptFrame(frame, step, 1e-4, spreads, np.array([1.0, 2.0]), ("a" * 64,), simulation, step)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy, to take things away from."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_energies_of_several_systems_are_not_by_the_atom(finished: Path) -> None:
    """A water and a hundred at two sockets: a row of beadwork.out may be of either, and the atoms of one would make the
    other's spread a hundred times too large."""
    one = read_run(finished)
    one = replace(one, about=one.about | {"composition": {"O": 8, "H": 16}})
    several = replace(one, about=one.about | {"one_composition": False})
    by_atom, whole = panels.spreads(one)[1], panels.spreads(several)[1]
    assert (by_atom.y_label, whole.y_label) == ("energy spread (meV/atom)", "energy spread (meV)")
    (few,), (all_,) = by_atom.curves.values(), whole.curves.values()
    assert all_ == pytest.approx(24 * few)


def page(folder: Path, **options: Any) -> str:
    """The page's text."""
    report(folder, **options)
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def text(finished: Path) -> str:
    """The page of the whole run."""
    return page(finished)


def words(text: str, name: str) -> str:
    """A section as a person reads it."""
    section = re.search(rf'<section id="{name}">(.*?)</section>', text, re.DOTALL)
    assert section is not None, name
    plain = re.sub(r"<svg.*?</svg>|<[^>]*>", " ", section[1], flags=re.DOTALL)
    return " ".join(plain.split())


def test_figures_are_those_of_the_run(text: str) -> None:
    """0.2 s for a step of 0.5 fs is 0.216 ns/day; every number has its unit."""
    head = words(text, "headline")
    assert "steps 6 " in head
    assert "simulated 0.003 ps" in head
    assert "speed 0.216 ns/day" in head
    assert "time of one step 0.2 s" in head
    assert "1.000 force evaluations per bead and step" in head
    assert "largest force spread 70 meV/Å" in head
    assert "frames kept 3" in head
    assert "sha256:" + "a" * 64 in head
    assert "3 frames. The most uncertain is row 3 of the queue, 60 meV/Å on atom 4 (H)." in words(text, "frames-kept")
    # 1 meV a step of 0.5 fs, for 24 atoms
    assert "it drifted by +83 meV/atom/ps, with a scatter of" in words(text, "energies")
    radial = words(text, "radial-distribution-functions")
    assert "4 steps of 2 beads" in radial
    assert "from 4 steps and 2 members" in radial
    assert radial.count("not known") == 4  # the statistical error, from four steps, and so that of each of three pairs
    assert "(8.6 meV" not in radial
    assert "(25.9 meV here)" in words(text, "spread-of-the-committee")


def test_sections_have_pictures_and_say_how_to_read_them(text: str) -> None:
    """A picture without words helps nobody: each has a caption, a name for those who cannot see it, and axes' units."""
    assert re.findall(r'<section id="([^"]*)">', text) == SECTIONS
    pictures = re.findall(r"<figure>(.*?)</figure>", text, re.DOTALL)
    assert len(pictures) == 9
    for picture in pictures:
        assert picture.removeprefix('<div class="grid">').startswith('<svg role="img" aria-label="')
        assert len(words(f'<section id="x">{picture}</section>', "x")) > 80
        # matplotlib leaves every drawn text in a comment
        drawn = re.findall(r"<!-- (.*?) -->", picture)
        axes = [label for label in drawn if re.search(r"[a-z]{3}.*\(.*\)$|^step of", label)]
        assert len(axes) >= 1 + ("step by part" not in picture), drawn


def test_the_page_asks_for_nothing(text: str) -> None:
    """No address is loaded: nothing that names a source, and a policy that forbids it to the viewer's program."""
    markup = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"<(?:script|link|img|iframe|object)\b", markup)
    assert not re.findall(r"@import|url\((?!#)", markup)
    assert "default-src 'none'" in markup
    assert text.count("<script>") == text.count("</script>") == 2


def test_names_are_text(text: str, run: Path) -> None:
    """A bundle or a file that is called like markup does not become any."""
    assert "<b>delta</b>" not in text
    assert "models/&lt;b&gt;delta&lt;/b&gt;" in words(text, "headline")
    out = run / "beadwork.out"
    out.write_text(out.read_text().replace('"input.xml"', '"<img src=x>.xml"'))
    assert "<img" not in re.sub(r"<script>.*?</script>", "", page(run), flags=re.DOTALL)


EVIL = "\"'><img id=evil src=x onerror=alert(1)>"


def test_no_string_of_the_folder_becomes_markup(run: Path) -> None:
    """Every string that a run's files may bring, and counts of which somebody made one: in the page they are text."""

    novel(run)
    row = replace(kept(21, 0.01, "f" * 64), novelty={EVIL: np.ones(len(NUMBERS))}, why=(EVIL,))
    Queue(run / "queue.db").add(row)
    summary = json.loads((run / "summary.json").read_text())
    summary["novelty"] = {"structures": EVIL, "new_structures": EVIL, "new_atoms": EVIL, "largest": {EVIL: EVIL}}
    summary |= {"frames_kept": EVIL, "exit_code": EVIL, "why": EVIL, "marks_passed": {EVIL: EVIL}}
    summary["committees"] = [{"step": 3, "evaluation": 3, "committee": EVIL, "folder": EVIL}]
    summary["seconds_per_step_by_part"] = {EVIL: 0.1}
    (run / "summary.json").write_text(json.dumps(summary))
    lines = (run / "beadwork.out").read_text().splitlines(keepends=True)
    told = json.loads(lines[1].partition("# run: ")[2])
    told |= {"models": {EVIL: EVIL}, "simulation": EVIL}
    (run / "beadwork.out").write_text("".join([lines[0], f"# run: {json.dumps(told)}\n", *lines[2:]]))
    text = page(run)
    assert "&lt;img id=evil" in text
    for raw in ("<img", "onerror=alert(1)>"):
        assert raw not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)


def test_a_difference_to_no_named_baseline_is_said(finished: Path) -> None:
    """Nothing but the name of such a Δ says that it belongs to the baseline: the page's head tells it."""
    run = read_run(finished)
    said = "The card of delta-0, &lt;d&gt; does not say of which baseline it is the difference"
    assert "difference" not in sections.headline(run)
    run = replace(run, about=run.about | {"unnamed_baseline": ["delta-0", "<d>"]})
    assert f'<p class="amber">{said}' in sections.headline(run)


def test_the_policy_names_the_scripts_by_hash(text: str) -> None:
    """A script that a string of the run would smuggle in is refused by the browser: none runs but the two whose SHA-256
    stands in the policy, byte for byte, and no handler within an element does."""
    (policy,) = re.findall(r"script-src ([^;]*);", text)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(hashes) == 2
    assert policy.split() == [*(f"'sha256-{digest}'" for digest in hashes), "'unsafe-eval'", "blob:"]
    assert "\r" not in text  # a browser reads it as \n, and hashes that


def remove(*names: str) -> Callable[[Path], None]:
    """Take files away."""

    def take(folder: Path) -> None:
        for name in names:
            for path in folder.glob(name):
                path.unlink()

    return take


def rewrite(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    """Change files."""

    def write(folder: Path) -> None:
        for path in folder.glob(name):
            path.write_text(change(path.read_text()))

    return write


def without_about(text: str) -> str:
    """beadwork.out as an older beadwork wrote it."""
    lines = [line.split() for line in text.splitlines() if not line.startswith("# run")]
    return "\n".join([" ".join(lines[0][:7]), *(" ".join(line[:6]) for line in lines[1:])]) + "\n"


def about(old: str, new: str) -> Callable[[Path], None]:
    """Change what beadwork.out says of its run."""
    return rewrite("beadwork.out", lambda text: text.replace(old, new))


def no_spread(text: str) -> str:
    """beadwork.out of a run without a committee."""
    return re.sub(r"(?m)^( +\d+ +\d+ \S+) .*", r"\1 nan nan 0.1 nan nan", text)


RADIAL = "radial-distribution-functions"


def novel(folder: Path, committee: bool = True) -> None:
    """Make it a run with novelty: Δ is new from step 3 on; three frames more, two of them kept for it alone."""
    facts = json.loads((folder / "beadwork.out").read_text().splitlines()[1].removeprefix("# run: "))
    record = Record(folder, ["O", "H"], facts | {"spread_of_delta_alone": committee})
    queue = Queue(folder / "queue.db", create=True)
    for step in range(STEPS + 1):
        spread = 0.01 if committee else None
        new = {"baseline": 0.5} | ({"delta": 0.5 * step} if committee else {})
        by = {"O": 0.5, "H": max(new.values())}
        told = Evaluated("s", step, BEADS, -1.0, spread, spread, {"idle": 0.1}, novelty=new, element_novelty=by)
        record(replace(told, new_structures=int(step > 2), new_atoms=2 * int(step > 2)))
    for step, why in ((11, ("novelty",)), (12, ("novelty",)), (13, ("spread", "novelty"))):
        row = kept(step, 0.001 * step, "f" * 64)
        of = np.full(len(NUMBERS), 0.1)
        of[5] = 0.3 * step
        gone = {} if committee else {"force_spread": np.full(len(NUMBERS), np.nan), "energy_spread": np.nan}
        queue.add(replace(row, novelty={"delta" if committee else "baseline": of}, why=why, **gone))
    record.close(record.summary(done=STEPS, each=BEADS))


def test_novelty_stands_beside_the_spread(run: Path) -> None:
    """Over time and by element, with the edge of training; what it asks for; and which frames were kept for what."""
    novel(run)
    text = page(run)
    assert re.findall(r'<section id="([^"]*)">', text) == [*SECTIONS[:6], "novelty", *SECTIONS[6:]]
    assert "largest novelty 3.00 for Δ" in words(text, "headline")
    said = words(text, "novelty")
    assert "4 of 14 structures have an atom above 1, the edge of training; these are 8 atoms." in said
    assert "For atoms that are new to Δ, label these frames at the high level" in said
    assert "new to the baseline" not in said  # it is not
    section = re.search(r'<section id="novelty">(.*?)</section>', text, re.DOTALL)
    assert section is not None
    drawn = re.findall(r"<!-- (.*?) -->", section[1])
    assert drawn.count("1: the edge of training") == 2
    assert {"for the baseline", "for Δ", "frames kept for it", "O", "H"} <= set(drawn)
    said = words(text, "frames-kept")
    assert "6 frames: 3 for spread, 2 for novelty, 1 for spread and novelty." in said
    assert "The most uncertain is row 3 of the queue, 60 meV/Å on atom 4 (H)." in said
    assert "The newest is row 7, of novelty 3.90 for Δ on atom 5 (H)." in said
    sentence = "he spread is that of Δ alone: the baseline's error against its own reference is not in it"
    assert f"T{sentence}" in words(text, "spread-of-the-committee")
    swap = {"step": 3, "evaluation": 3, "committee": "b", "folder": "c"}
    rewrite("summary.json", lambda text: json.dumps({**json.loads(text), "committees": [swap]}))(run)
    assert f"With the committee that the run began with, t{sentence}" in words(page(run), "spread-of-the-committee")


def test_novelty_without_a_committee(run: Path) -> None:
    """Frames that a baseline alone has kept have no spread: nothing is said of one, and nothing is NaN."""
    remove("queue.db")(run)
    novel(run, committee=False)
    text = page(run)
    assert "had no committee" in words(text, "spread-of-the-committee")
    said = words(text, "frames-kept")
    assert "3 frames: 2 for novelty, 1 for spread and novelty. The newest is row 3, of novelty 3.90 for the" in said
    assert "uncertain" not in said
    assert "nan" not in said


def test_without_novelty_the_page_is_as_before(text: str) -> None:
    """Models that do not know what they were trained on: no section, no tile and no word of it."""
    assert "novelty" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL).lower()
    assert "the spread is that of" not in text.lower()


@pytest.mark.parametrize(
    "harms",
    [
        [
            (remove("summary.json"), "where-the-time-goes", "There is no summary.json"),
            (remove("simulation.out"), "energies", "property files are not there"),
            (remove("simulation.out"), "temperature", "property files are not there"),
            (remove("queue.db"), "frames-kept", "cannot be shown"),
            (remove("simulation.committee_1"), RADIAL, "No committee error: i-PI did not write"),
        ],
        [
            (rewrite("simulation.out", lambda text: text.splitlines()[0]), "energies", "are empty"),
            (about('"queue.db"', "null"), "frames-kept", "had no --queue"),
            (rewrite("simulation.committee_?", lambda text: text.replace("Step:  ", "Step: 9")), RADIAL, "same stride"),
        ],
        [
            (rewrite("simulation.out", lambda text: text.replace("ial", "").replace("served", "")), "energies",
             "i-PI printed none of this; have it print potential{electronvolt}"),
            (rewrite("simulation.out", lambda text: text.replace("temp", "")), "temperature", "temperature{kelvin}"),
            (about('"queue.db"', '"elsewhere"'), "frames-kept", "--queue URL"),
            (about('"temperature_K": 300.0', '"temperature_K": null'), RADIAL, "has no temperature"),
            (about('"time_step_fs": 0.5', '"time_step_fs": null'), "headline", "steps 6"),
        ],
        [
            (about("f" * 64, "d" * 64), "frames-kept", "4 of other runs"),
            (remove("simulation.positions_*"), RADIAL, "no periodic structures"),
        ],
        [(remove("simulation.positions_*"), RADIAL, "from the 3 frames kept")],
        [(about('"plain_mean": true', '"plain_mean": false'), RADIAL, "No committee error: the weights are unequal")],
        [
            (rewrite("beadwork.out", no_spread), "spread-of-the-committee", "had no committee"),
            (rewrite("simulation.positions_?.xyz", lambda text: text[:900]), RADIAL, "from the 3 frames kept"),
        ],
        [(rewrite("beadwork.out", without_about), "spread-by-element", "an older beadwork wrote it")],
        [
            (rewrite("beadwork.out", lambda text: "".join(text.splitlines(True)[:2])), "spread-of-the-committee",
             "had no committee"),
        ],
        [(rewrite("beadwork.out", lambda text: ""), "energies", "property files are not there")],
    ],
)  # fmt: skip
def test_a_missing_piece_is_a_sentence(run: Path, harms: list[tuple[Callable[[Path], None], str, str]]) -> None:
    """Whatever a run did not leave, or left torn: the rest of the page stands, and that piece says why."""
    for harm, _, _ in harms:
        harm(run)
    text = page(run)
    assert re.findall(r'<section id="([^"]*)">', text) == SECTIONS
    for _, section, sentence in harms:
        assert sentence in words(text, section)


@pytest.mark.parametrize(
    ("package", "sections"),
    [
        ("matplotlib", ["energies", "radial-distribution-functions", "where-the-time-goes"]),
        ("chemiscope", ["frames-kept"]),
    ],
)
def test_a_missing_package_is_a_sentence(
    run: Path, monkeypatch: pytest.MonkeyPatch, package: str, sections: list[str]
) -> None:
    """Without the package the page has its numbers, and says what to install."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else find(name, *more))
    text = page(run)
    for section in sections:
        assert f"pip install {package}" in words(text, section)
    assert "2.9" in words(text, "radial-distribution-functions") or "±" in words(text, "radial-distribution-functions")


def test_frames_of_two_systems(run: Path) -> None:
    """One queue may hold frames of two compositions; what is said of distances is of one of them."""
    remove("simulation.positions_*")(run)
    more = kept(7, 0.05, "f" * 64)
    atom = Frame(np.array([8]), np.zeros((1, 3)), np.eye(3) * CELL)
    Queue(run / "queue.db").add(replace(more, frame=atom, force_spread=np.array([0.05])))
    assert "from the 3 frames kept of one composition, of 4" in words(page(run), RADIAL)


def test_a_run_that_was_not_periodic(run: Path) -> None:
    """i-PI writes a cell all the same, which would make a g(r) of thousands: there is none, and the page says why."""
    about('"periodic": true', '"periodic": false')(run)
    text = page(run)
    assert words(text, RADIAL).startswith("Radial distribution functions The run was not periodic ( --not-periodic ):")
    assert "steps of 0.5 fs, not periodic, started" in text


@pytest.mark.parametrize(("cell", "said"), [(CELL, "up to 4 Å, half the cell's smallest width."), (14.0, "up to 6 Å.")])
def test_how_far_pairs_were_counted(run: Path, cell: float, said: str) -> None:
    """The caption says what the code does: 6 Å, or half the cell where that is less."""
    for file in run.glob("simulation.positions_*"):
        head = r"CELL\(abcABC\):(\s+\S+){3}"
        file.write_text(re.sub(head, f"CELL(abcABC): {cell} {cell} {cell}", file.read_text()))
    assert f"the curves go {said}" in words(page(run), RADIAL)


def status(folder: Path, **values: Any) -> None:
    """status.json of a run in this folder."""
    told = StatusFile(folder, Pace(), 6, lambda: {"engines": [], "committee": None})
    told._write()
    data = json.loads(told.path.read_text())
    told.path.write_text(json.dumps(data | values))


def ended(code: int, why: str = "", **more: Any) -> Callable[[Path], None]:
    """A summary with another end."""
    facts = {"exit_code": code, "why": why, **more}
    return rewrite("summary.json", lambda text: json.dumps({**json.loads(text), **facts}))


def test_the_verdict_stands_on_top(finished: Path, tmp_path: Path) -> None:
    """A run that did all that was asked is green; one that a guard, an error or a signal has ended, that i-PI ended
    before its time, that was killed, hangs or still runs looks otherwise, and the sentence that ended it is there."""
    asked = about('"beads": 2', '"total_steps": 6, "beads": 2')
    longer = about('"beads": 2', '"total_steps": 60, "beads": 2')
    gone = remove("summary.json")
    for k, (harms, colour, *told) in enumerate(
        [
            ([asked, ended(0)], "green", "Ended well: i-PI did all steps, exit code 0"),
            ([ended(0)], "green", "Ended well, exit code 0"),
            ([longer, ended(0)], "amber", "i-PI ended in order after 6 of 60 steps", "A file EXIT"),
            ([asked, ended(0, marks_passed={"spread": 12})], "amber", "thresholds were exceeded", "pass: spread 12."),
            ([ended(11, "a force of 101 eV/Å on <O>")], "red", "Stopped by a safety threshold, exit code 11",
             "a force of 101 eV/Å on <O>"),
            ([ended(6, "NaN in bead 3")], "red", "exit code 6: A model returned NaN or infinity", "NaN in bead 3"),
            ([ended(143)], "amber", "Ended by SIGTERM"),
            ([longer, gone], "red", "Not known to have ended", "6 of 60 steps were done."),
            ([gone, lambda folder: status(folder, birth="another 1")], "red", "Killed", "6 steps were done."),
            ([gone, lambda folder: status(folder)], "amber", "Still running"),
            ([gone, lambda folder: status(folder, state="serving", answered_before_update=5.0, updated_monotonic=-1e6,
                                          seconds_per_step=1.0, host="x", updated=1e9)], "red", "Hangs"),
        ]
    ):  # fmt: skip
        folder = Path(shutil.copytree(finished, tmp_path / f"run-{k}", ignore=shutil.ignore_patterns("*.xyz", "*.db")))
        for harm in harms:
            harm(folder)
        found = verdict(read_run(folder))
        assert found.colour == colour, found
        for sentence in told:
            assert sentence in f"{found.head}: {found.text}"
    markup = sections.headline(read_run(folder))
    assert markup.startswith('<section id="headline"><div class="verdict red"><strong>Hangs')


def test_averages_have_error_bars_that_hold(run: Path) -> None:
    """Of 2,000 independent values the second half has the error of the mean; of a run that is too short, or drifts all
    along, no bar is made up. Quantities come in the field's units and by the atom, from whatever i-PI printed."""
    rng = np.random.default_rng(1)
    names = ["temperature{kelvin}", "pressure_cv{megapascal}", "volume{angstrom3}", "kinetic_cv(H)", "potential",
             "density{g/cm3}", "pressure_md{bar}"]  # fmt: skip
    steps = np.arange(2000)
    kinetic = 0.15 / 27.211386 * 16 * (1 + 0.01 * rng.normal(size=2000))  # of 16 H atoms
    columns = [steps, 300 + rng.normal(0, 8, 2000), 10 + rng.normal(0, 30, 2000), np.full(2000, 512.0), kinetic,
               -9 + 1e-4 * steps, np.full(2000, 0.997), np.zeros(2000)]  # fmt: skip
    head = [f"# column {k} --> {name} : words" for k, name in enumerate(["step", *names], 1)]
    rows = [" ".join(f"{value:.10g}" for value in row) for row in zip(*columns, strict=True)]
    (run / "simulation.out").write_text("\n".join([*head, *rows, ""]))
    text = page(run)
    found = re.findall(r'<section id="([^"]*)">', text)
    assert found[2:7] == ["energies", "kinetic-energy", "temperature", "pressure", "volume-and-density"]
    said = words(text, "averages")
    mean, error = map(float, re.findall(r"temperature, of all beads ([\d.]+) ([\d.]+) K 1000", said)[0])
    half = columns[1][1000:]
    assert mean == pytest.approx(half.mean(), abs=error / 10)
    assert error == pytest.approx(8 / np.sqrt(1000), rel=0.4)
    pressure = re.findall(r"pressure, quantum, centroid virial \(pressure_cv\) (-?[\d.]+) ([\d.]+) bar", said)[0]
    assert float(pressure[0]) == pytest.approx(10 * columns[2][1000:].mean(), abs=float(pressure[1]) / 5)
    assert "pressure_md" not in said  # of two beads it is no pressure, and the right one is there
    energy = re.findall(r"\(kinetic_cv\), H ([\d.]+) ([\d.]+) meV/atom", said)[0]
    assert float(energy[0]) == pytest.approx(150, abs=0.5)
    assert "volume 512 constant Å³ 1000" in said
    assert "density 0.997 constant g/cm³ 1000" in said
    assert re.search(r"potential energy -[\d.]+ too short meV/atom 1000", said)
    assert "too short: the run is too short for the slowest motion of this quantity" in said
    short = "\n".join([*head, *rows[:20], ""])
    (run / "simulation.out").write_text(short)
    said = " ".join(re.sub("<[^>]*>", " ", sections.averages(read_run(run))).split())
    assert "few values K 10" in said
    assert "few values: fewer than 32 values" in said


def test_every_curve_as_a_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line a point, with what x and y are; g(r) with its error, and the averages; by default beside the page."""
    novel(run)
    assert main(["report", str(run), "--csv"]) == 0
    assert str(run / "report.csv") in capsys.readouterr().out
    with open(run / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    curves = {(row["section"], row["curve"]): [] for row in rows}
    for row in rows:
        curves[row["section"], row["curve"]].append(row)
    force = curves["Spread of the committee", "largest of any atom"]
    assert [float(row["y"]) for row in force] == [10.0] * (STEPS + 1)
    assert (force[3]["x"], force[3]["x_is"], force[3]["y_is"]) == ("1.5", "time (fs)", "force spread (meV/Å)")
    conserved = curves["Energies", "conserved quantity"]
    assert float(conserved[-1]["y"]) == pytest.approx(6.0 / len(NUMBERS))
    assert {"for Δ", "H"} <= {name for section, name in curves if section == "Novelty"}
    pair = curves["Radial distribution functions", "OO"]
    assert len(pair) == 120
    assert max(float(row["error"]) for row in pair) > 0
    assert conserved[0]["error"] == ""
    assert {name for section, name in curves if section == "Averages"} >= {"potential energy", "of all beads"}
    assert not any("nan" in row["y"] for row in rows)
    assert main(["report", str(run), "--csv", str(run / "mine.csv")]) == 0
    assert (run / "mine.csv").read_text() == (run / "report.csv").read_text()


def test_properties_in_two_files_without_steps(run: Path) -> None:
    """Each picture has what it needs from whichever file has it."""
    old = (run / "simulation.out").read_text().splitlines()
    rows = [line.split() for line in old if not line.startswith("#")]
    for name, at in (("potential", 4), ("conserved", 2)):
        head = f"# column   1     --> {name}{{electronvolt}} : words"
        (run / f"{name}.out").write_text("\n".join([head, *(row[at] for row in rows), ""]))
    (run / "simulation.out").unlink()
    files = {f"{name}.out": {"stride": 1, "columns": []} for name in ("potential", "conserved")}
    old_files = json.dumps({"simulation.out": {"stride": 1, "columns": COLUMNS}})
    about(f'"properties": {old_files}', f'"properties": {json.dumps(files)}')(run)
    text = page(run)
    assert "it drifted by +83 meV/atom/ps, with a scatter of" in words(text, "energies")
    assert "i-PI printed none of this" in words(text, "temperature")


def test_long_runs_stay_light(run: Path) -> None:
    """A million steps become as many points as a picture has room for."""
    out = run / "beadwork.out"
    head = out.read_text().splitlines()[:2]
    rows = (f"{k} 2 -1.0 0.003 {0.01 + 0.001 * (k % 7):.4f} 0.1 0.002 0.003" for k in range(60_000))
    out.write_text("\n".join([*head, *rows]) + "\n")
    with_viewer = len(page(run))
    remove("queue.db")(run)
    assert len(page(run)) < 1_500_000 < with_viewer


def test_from_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page goes where it was asked to go; a folder without a run, and a place that cannot be written, are said."""
    assert main(["report", str(run), "--page", str(tmp_path / "there.html")]) == 0
    assert (tmp_path / "there.html").exists()
    assert str(tmp_path / "there.html") in capsys.readouterr().out
    assert main(["report", str(tmp_path)]) == 2
    assert "there is no beadwork.out" in capsys.readouterr().err
    assert main(["report", str(run), "--page", str(tmp_path / "no" / "there.html")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert main(["report", str(run), "--queue", str(tmp_path / "none.db")]) == 9
    assert "there is no queue" in capsys.readouterr().err
    assert json.loads((run / "summary.json").read_text())["frames_kept"] == 3


@pytest.mark.parametrize("left", ["", "{", '{"evaluations": 1', "[1]", "null"])
def test_a_summary_that_a_full_disk_has_cut(run: Path, left: str) -> None:
    """The page is written without it, and says so."""
    (run / "summary.json").write_text(left)
    assert "summary.json is empty or truncated" in page(run)


def test_a_record_that_a_full_disk_has_cut(run: Path) -> None:
    """Within what it says of its run, and after that: the page is written, and says so."""
    lines = (run / "beadwork.out").read_text().splitlines(keepends=True)
    (run / "beadwork.out").write_text(lines[0] + lines[1][: len(lines[1]) // 2])
    assert "The line # run: of beadwork.out is truncated" in words(page(run), "headline")
