"""The reference pages say what the code does."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase.db import connect

from beadwork.frame import Frame
from beadwork.harvest.queue import Queue
from beadwork.harvest.row import KeptFrame
from beadwork.potential.analytic import Harmonic
from beadwork.potential.potential import Potential
from beadwork.potential.response import Role
from beadwork.serve.reply import extra_keys
from support.response import Charges

DOCS = Path(__file__).parents[1] / "docs"


def pages() -> dict[str, Callable[[], str]]:
    """The pages that docs/make.py writes, and what makes each."""
    spec = importlib.util.spec_from_file_location("make_docs", DOCS / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.PAGES)


@pytest.mark.parametrize("name", pages())
def test_page_is_up_to_date(name: str) -> None:
    """A page that no longer holds is worse than none: run `python docs/make.py`."""
    assert (DOCS / name).read_text() == pages()[name]()


def named() -> list[str]:
    """Python names in README and docs; beadwork.out and beadwork.log are files."""
    text = "".join(page.read_text() for page in (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))))
    found = set(re.findall(r"(?<![\w./-])beadwork(?:\.[A-Za-z_]\w*)+", text))
    return sorted(name for name in found if name.split(".")[1] not in ("out", "log"))


@pytest.mark.parametrize("name", named())
def test_python_names_of_the_documentation_exist(name: str) -> None:
    """A reader can import what README and docs name, however modules and functions are renamed."""
    assert pkgutil.resolve_name(name) is not None


def test_extras_are_all_described() -> None:
    """docs/extras.md has a row for each key that is sent, and no other."""
    role = Role("dipole", (Charges({1: 0.4}, 1.0), Charges({1: 0.5}, 1.0)), np.ones(2) / 2)
    potential = Potential(Harmonic(3.0), [Harmonic(1.0), Harmonic(2.0)], also=[role])
    rows = [line.split("|")[1].strip() for line in (DOCS / "extras.md").read_text().splitlines() if line[:2] == "| "]
    assert sorted(rows[1:]) == sorted(extra_keys(potential, member_forces=True))


def test_queue_columns_are_all_described(tmp_path: Path) -> None:
    """docs/queue.md has a row for each column and each entry that frames of every status have, and no other."""
    queue = Queue(tmp_path / "queue.db", create=True)
    for seed in range(4):
        positions = np.random.default_rng(seed).normal(size=(2, 3))
        frame = Frame(np.array([8, 1]), positions, np.eye(3) * 9, bead=0, charge=-1, spin=0)
        rest = {"weights": (0.2, 0.8), "novelty": {"delta": np.ones(2)}}
        queue.add(KeptFrame(frame, 1, 0.1, np.zeros(2), np.zeros(2), ("a" * 64,), "b" * 64, 1, **rest))
    for end in (
        None,
        lambda row: queue.finish(row, "me", {"energy": 1.0}),
        lambda row: queue.fail(row, "me", "x", again=False),
    ):
        claimed = queue.claim("me", 60.0)
        assert claimed is not None
        if end is not None:
            end(claimed.id)
    rows = list(connect(tmp_path / "queue.db", use_lock_file=False).select())
    assert {row.status for row in rows} == {"waiting", "claimed", "labelled", "failed"}
    columns, data = (DOCS / "queue.md").read_text().split("## Data")
    for text, found in (
        (columns, {key for row in rows for key in row.key_value_pairs}),
        (data, {key for row in rows for key in row.data}),
    ):
        named = re.findall(r"^\| (\w+) \|", text, re.MULTILINE)[1:]
        assert sorted(named) == sorted(found)


def test_index_names_every_page() -> None:
    """docs/README.md is how a page is found."""
    named = set(re.findall(r"\]\(([^)]+\.md)\)", (DOCS / "README.md").read_text())) - {"index.md"}
    assert sorted(named) == sorted(
        path.name for path in DOCS.glob("*.md") if path.name not in ("README.md", "index.md")
    )
