"""The contract of labels."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from beadwork.errors import LabelError
from beadwork.frame import Frame
from beadwork.label.label import Label, as_json, frame_of, structure


def label(**changes: Any) -> Label:
    """A label of two atoms."""
    values: dict[str, Any] = {
        "energy": -1.5,
        "forces": np.ones((2, 3)),
        "energy_error": 0.01,
        "forces_error": np.full((2, 3), 0.1),
        "method": "M/basis",
        "code": "code",
        "version": "1",
        "charge": 0,
        "spin": 0,
        "input": "",
        "seconds": 1.0,
        "extra": {"seed": 1},
    }
    return Label(**values | changes)


def test_dictionary_and_back() -> None:
    """What the queue stores is the label, to the last digit; wall time alone does not make it another label."""
    first = label()
    again = Label.from_dict(first.to_dict())
    assert again.hash == first.hash == label(seconds=2.0).hash
    assert label(energy=-1.5000000001).hash != first.hash


@pytest.mark.parametrize(
    "changes",
    [
        {"energy": float("nan")},
        {"energy_error": -0.1},
        {"forces": np.ones((2, 2))},
        {"forces": np.full((2, 3), np.inf)},
        {"forces": None},  # errors without forces
        {"forces_error": np.ones((3, 3))},
        {"forces_error": -np.ones((2, 3))},
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any]) -> None:
    """A label that is not finite or does not fit its atoms never reaches the queue."""
    with pytest.raises(LabelError):
        label(**changes)


def test_structure_and_back() -> None:
    """A frame comes back from what is stored of it, as arrays and as JSON's lists, to the last digit."""
    frame = Frame(np.array([8, 1]), np.array([[0.1, 0.2, 0.3], [1 / 3, 0, 9]]), np.eye(3), (True, False, True))
    for stored in (structure(frame), json.loads(as_json(structure(frame)))):
        back = frame_of(stored)
        for name in ("numbers", "positions", "cell"):
            np.testing.assert_array_equal(getattr(back, name), getattr(frame, name), strict=True)
        assert back.pbc == frame.pbc


def test_a_label_of_another_version_is_named() -> None:
    """A label of another version is named as such, not half read."""
    stored = label().to_dict()
    stored["colour"] = stored.pop("method")
    with pytest.raises(LabelError, match="method"):
        Label.from_dict(stored)
