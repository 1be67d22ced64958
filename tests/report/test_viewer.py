"""What the viewer is given."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from beadwork.frame import Frame
from beadwork.report import viewer

pytest.importorskip("chemiscope", reason="the viewer's extra (report) is not installed")

CELL = np.diag([10.0, 11.0, 12.0])
WATER = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])


def shown(row: int, step: int | None, positions: np.ndarray) -> viewer.Shown:
    """One frame whose last atom is the most uncertain."""
    frame = Frame(np.array([8, 1, 1] * (len(positions) // 3)), positions, CELL, bead=row)
    return viewer.Shown(frame, row, step, np.linspace(0.001, 0.02 * row, len(positions)), 1e-4)


def test_spreads_arrive_with_units_and_the_map_is_steps() -> None:
    """Numbers in meV/Å as the queue has them in eV/Å; colour and axes set, so that nobody has to find them."""
    frames = [shown(row, 10 * row, WATER + row) for row in (1, 2)]
    made = json.loads(viewer.data(frames, "frames kept"))
    properties = made["properties"]
    assert properties["largest force spread"]["values"] == pytest.approx([20.0, 40.0])
    assert properties["largest force spread"]["units"] == "meV/Å"
    assert properties["force spread (meV/Å)"]["values"] == pytest.approx([1, 10.5, 20, 1, 20.5, 40])
    assert properties["force spread (meV/Å)"]["target"] == "atom"
    assert properties["step"]["values"] == [10, 20]
    assert made["settings"]["map"]["x"] == {"property": "step"}
    assert made["settings"]["map"]["y"] == {"property": "largest force spread"}
    assert made["settings"]["structure"][0]["color"]["property"] == "force spread (meV/Å)"


def new(row: int, why: tuple[str, ...], **novelty: float) -> viewer.Shown:
    """One frame whose first atom has this much novelty for these parts, and the others a tenth of it."""
    of = {part: value * np.array([1, 0.1, 0.1]) for part, value in novelty.items()}
    return replace(shown(row, row, WATER), novelty=of, why=why)


def test_novelty_stands_beside_the_spread_of_every_atom() -> None:
    """For baseline and Δ; where a frame was kept for it, it is what is seen first: the newest frame, coloured by the
    part to which it is newest, and a sign for what each was kept for."""
    rows = [new(1, ("spread",), baseline=0.5, delta=0.25), new(2, ("novelty",), baseline=2.0, delta=4.0)]
    made = json.loads(viewer.data(rows, "frames kept"))
    properties = made["properties"]
    assert properties["novelty for the baseline"]["values"] == pytest.approx([0.5, 0.05, 0.05, 2, 0.2, 0.2])
    assert properties["novelty for Δ"]["target"] == "atom"
    assert properties["force spread (meV/Å)"]["target"] == "atom"
    assert properties["largest novelty"]["values"] == [0.5, 4.0]
    assert properties["kept for"]["values"] == ["spread", "novelty"]
    settings = made["settings"]
    assert settings["map"]["y"] == settings["map"]["color"] | {} == {"property": "largest novelty"}
    assert settings["map"]["symbol"] == "kept for"
    assert settings["structure"][0]["color"]["property"] == "novelty for Δ"
    assert settings["pinned"] == [1]


def test_the_spread_is_seen_first_where_none_was_kept_for_novelty() -> None:
    """As before; and novelty that one frame lacks, which an older beadwork kept, is not shown for the others."""
    rows = [new(1, ("spread",), baseline=0.5), new(2, ("spread",), baseline=0.25)]
    made = json.loads(viewer.data(rows, "frames kept"))
    assert made["settings"]["map"]["y"] == {"property": "largest force spread"}
    assert "symbol" not in made["settings"]["map"]
    assert "novelty for Δ" not in made["properties"]
    made = json.loads(viewer.data([shown(3, 3, WATER), new(4, ("novelty",), baseline=3.0)], "frames kept"))
    assert not [name for name in made["properties"] if "novelty" in name]
    assert made["settings"]["map"]["y"] == {"property": "largest force spread"}


def test_novelty_without_a_committee() -> None:
    """A baseline that knows what it was trained on keeps frames without any spread, which is NaN: the page has them."""
    row = replace(new(1, ("novelty",), baseline=3.0), force_spread=np.full(3, np.nan), energy_spread=np.nan)
    made = json.loads(viewer.data([row, replace(row, row=2)], "frames kept"))
    assert not [name for name in made["properties"] if "spread" in name]
    assert made["settings"]["map"]["y"] == {"property": "largest novelty"}
    assert made["settings"]["structure"][0]["color"]["property"] == "novelty for the baseline"


def test_what_is_not_known_is_left_out() -> None:
    """NaN is no JSON: a column with a gap is not sent, and the map takes the queue's rows where steps are unknown."""
    made = json.loads(viewer.data([shown(1, None, WATER), shown(2, 5, WATER)], "frames kept"))
    assert "step" not in made["properties"]
    assert made["settings"]["map"]["x"] == {"property": "queue row"}


def test_molecules_are_whole_and_at_home() -> None:
    """i-PI lets molecules drift away, and other codes cut them at the cell's edge; distances stay what they were."""
    far = WATER + 3 * CELL[0] - 2 * CELL[2]
    cut = WATER + np.array([9.8, 5.0, 6.0])
    cut[1, 0] -= 10.0
    made = json.loads(viewer.data([shown(1, 0, np.concatenate([far, cut]))], "frames kept"))
    structure = made["structures"][0]
    positions = np.array([structure["x"], structure["y"], structure["z"]]).T
    for molecule in (positions[:3], positions[3:]):
        assert np.linalg.norm(molecule[1:] - molecule[0], axis=1) == pytest.approx(
            [0.96, np.hypot(0.24, 0.93)], abs=1e-3
        )
        assert (molecule.mean(axis=0) >= 0).all()
        assert (molecule.mean(axis=0) < CELL.diagonal()).all()


def test_nothing_closes_the_script_that_it_stands_in() -> None:
    """A name or a program with a tag in it stays text; `\\x3c` is `<` to JavaScript in strings and expressions."""
    name = "</script><script>alert(1)</script><!--"
    text = viewer.data([shown(1, 0, WATER)], name)
    assert "<" not in text
    assert json.loads(text)["meta"]["name"] == name
    assert (
        viewer.inlined('a = "<!-- <script></script>" + (1 < 2)') == 'a = "\\x3c!-- \\x3cscript>\\x3c/script>" + (1 < 2)'
    )
    program = viewer.program()
    assert program is not None
    inlined = viewer.inlined(program.read_text())
    assert not {sign for sign in ("<!--", "<script", "</script") if sign in inlined}
