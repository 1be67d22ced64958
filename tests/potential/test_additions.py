"""What a card says of what is to be added: a model that learned less D3 is served with it, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from beadwork.cli import main
from beadwork.config import ADDITIONS, ServeConfig
from beadwork.errors import ModelError
from beadwork.potential.additions import check_expected, format_additions
from beadwork.potential.bundle import Card
from beadwork.potential.dispersion import KINDS


def card(**about):
    """The card of a model."""
    return Card(Path("m/one"), "one", (1, 8), 4.0, "float64", None, {}, about=about)


def test_a_model_is_served_with_what_it_expects():
    """The same, whatever the functional's letters; another one, none or more is refused, and a card that says nothing
    of it takes any."""
    told = card(add={"d3bj": "revPBE"})
    check_expected([told, card()], {"d3bj": "REVPBE"})
    check_expected([card()], {"d4": "PBE"})
    for add, words in (
        ({}, "without d3bj=revPBE, and nothing is added here; give --add d3bj=revPBE"),
        ({"d3bj": "PBE"}, "and d3bj=PBE is added here"),
        ({"d3bj": "revPBE", "zbl": "1"}, "and d3bj=revPBE zbl=1 is added here"),
    ):
        with pytest.raises(ModelError, match=words):
            check_expected([told], add)
    with pytest.raises(ModelError, match="has add = 'd3bj'; it must be a table"):
        check_expected([card(add="d3bj")], {})


def test_every_kind_has_a_name_in_the_configuration():
    """What the options name is what there is."""
    assert {*KINDS, "zbl"} == set(ADDITIONS)
    assert format_additions({"zbl": "1", "d4": "PBE"}) == "d4=PBE zbl=1"


def test_the_command_line_takes_it(tmp_path, capsys, monkeypatch):
    """`--add d3bj=revPBE zbl=1` reaches the configuration; a kind that there is not is a sentence."""
    seen = []

    def stop(config: ServeConfig) -> ServeConfig:
        seen.append(config.add)
        raise ModelError("here")

    monkeypatch.setattr(ServeConfig, "check", stop)
    words = ["serve", "i.xml", "--baseline", "m", "--add"]
    assert main([*words, "d3bj=revPBE", "zbl=1"]) == ModelError.exit_code
    assert seen == [{"d3bj": "revPBE", "zbl": "1"}]
    assert main([*words, "d3bj=revPBE", "d3bj=PBE"]) == 2
    with pytest.raises(SystemExit):
        main([*words, "d5=PBE"])
    assert "'d5=PBE' is not KIND=PARAMETERS with a kind of d3bj, " in capsys.readouterr().err
