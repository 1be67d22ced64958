"""What an error says, and what to do about it, travel as fields; its text is for people."""

from __future__ import annotations

import pickle

import pytest

from beadwork.doctor.finding import RED, Finding, refused
from beadwork.errors import BeadworkError, ModelError
from beadwork.harvest.queue import ClaimLost


@pytest.mark.parametrize("kind", [BeadworkError, ModelError, ClaimLost])
def test_what_and_remedy_are_fields(kind: type[BeadworkError]) -> None:
    """Both are there as they were given, also in another process; the text is both, or the one that there is."""
    error = pickle.loads(pickle.dumps(kind("the card; of a", "import it; again")))
    assert type(error) is kind
    assert (error.what, error.remedy, str(error)) == (
        "the card; of a",
        "import it; again",
        "the card; of a; import it; again",
    )
    alone = kind("it is; as it is")
    assert (alone.what, alone.remedy, str(alone)) == ("it is; as it is", "", "it is; as it is")


def test_the_doctor_takes_no_sentence_apart() -> None:
    """A semicolon of a path, of what a library said, or in the middle of a remedy stays where it is."""
    found = refused("models", ModelError("a;b/card.toml is torn; and old", "copy it; import it"))
    assert found == Finding(RED, "models", "a;b/card.toml is torn; and old", "copy it; import it", 4)
    assert refused("models", ModelError("gone; for good")).remedy == ""
