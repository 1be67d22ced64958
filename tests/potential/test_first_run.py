"""A TorchScript file is a program: whose it is, and which, is said before it runs here for the first time."""

from __future__ import annotations

import logging
import shutil

import pytest

from beadwork.potential.bundle import MODEL, check, sha256
from beadwork.potential.importer import import_model
from beadwork.potential.torchscript import TorchScriptEngine


@pytest.fixture
def announced(tmp_path, monkeypatch, caplog):
    """A home in which nothing has run yet, and what is said about programs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    caplog.set_level(logging.WARNING, "beadwork")
    return lambda: [message for message in caplog.messages if "for the first time" in message]


def test_whose_program_it_is_is_said_once(made, announced, tmp_path):
    """A user who is given a bundle learns the owner and the hash before the program runs, and is not told again."""
    folder = shutil.copytree(made["invariant"].bundle, tmp_path / "given")
    TorchScriptEngine(check(folder))
    (message,) = announced()
    assert f"{folder / MODEL} of {folder.owner()} runs here" in message
    assert sha256(folder / MODEL) in message
    TorchScriptEngine(check(folder))
    # the same program under another name is no other program
    TorchScriptEngine(check(made["invariant"].bundle))
    assert len(announced()) == 1
    TorchScriptEngine(check(made["vector"].bundle))
    assert len(announced()) == 2


def test_a_strangers_torchscript_is_announced_when_it_is_imported(made, announced, tmp_path):
    """Import runs the program: it is announced there, and the bundle that holds the same bytes says nothing more."""
    given = tmp_path / "given.pt"
    shutil.copy(made["invariant"].bundle / MODEL, given)
    import_model(given, tmp_path / "bundle")
    (message,) = announced()
    assert str(given) in message
    TorchScriptEngine(check(tmp_path / "bundle"))
    assert len(announced()) == 1


def test_a_home_that_cannot_be_written_ends_nothing(made, announced, tmp_path):
    """A container's read-only home: it is said each time, and the model is loaded all the same."""
    (tmp_path / "state").write_text("no folder")
    for _ in range(2):
        TorchScriptEngine(check(made["invariant"].bundle))
    assert len(announced()) == 2
