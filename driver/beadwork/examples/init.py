"""Make a folder that can be run from: an input of i-PI's, run.toml, and the models that it names."""

from __future__ import annotations

import shutil
from pathlib import Path

from beadwork.disk import writing
from beadwork.errors import ConfigError
from beadwork.toml import read_toml

HERE = Path(__file__).parent
INPUTS, MODELS = HERE / "shipped-inputs", HERE / "shipped-models"
#: how run.toml in a folder of inputs names models, and what it is in a folder of one's own
THERE, HERE_TOO = "../../models/", "models/"
#: the kinds of simulation: the folder of inputs that has each, and what it is
KINDS = {
    "water": ("water", "32 H2O at 300 K, 16 beads"),
    "npt": ("water-npt", "the same at 1 bar"),
    "solute": ("h2-water", "H2 in water, which the models have never seen"),
    "proton": ("zundel-water", "an excess proton in water, which they have not seen either"),
    "cluster": ("cluster", "H5O2+ in vacuum, a committee from PBE to MP2"),
    "zundel": ("zundel", "H5O2+ in vacuum at coupled cluster, 32 beads; docs/proton.md"),
    "mts": ("water-mts", "Δ every fourth step and on 4 beads"),
    "eco": ("water-eco", "16 economised beads, about as good as 32 ordinary ones"),
    "piglet": ("water-piglet", "6 beads with colored noise"),
    "inet": ("water-inet", "over TCP, a connection a bead"),
}
#: of a folder of models, what a run needs and what says where they come from
FILES = (
    *("card.toml", "model.pt", "model.safetensors", "native.json", "novelty.npz", "heads.npz"),
    *("committee.toml", "README.md"),
)


def init(folder: Path, kind: str) -> list[str]:
    """Make the folder, and return what is in it. Raises ConfigError where there is something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already, and not an empty folder", "name a new one")
    source = INPUTS / KINDS[kind][0]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(source.iterdir()):
            shutil.copyfile(file, folder / file.name)
        for told in sorted(folder.glob("*.toml")):
            told.write_text(told.read_text(encoding="utf-8").replace(THERE, HERE_TOO), encoding="utf-8")
            for name in _models(read_toml(told)):
                models, copied = MODELS / name, folder / "models" / name
                shutil.copytree(models, copied, ignore=_others, copy_function=shutil.copyfile, dirs_exist_ok=True)
    return sorted(str(path.relative_to(folder)) for path in (*folder.glob("*"), *folder.glob("models/*")))


def _models(told: dict[str, object]) -> set[str]:
    """The folders of models that a file of settings names: its baseline is in one, its committee is one."""
    named = [told.get("baseline"), told.get("delta")]
    return {str(name).removeprefix(HERE_TOO).partition("/")[0] for name in named if name}


def _others(folder: str, names: list[str]) -> set[str]:
    """What is not copied: scripts, labels, and whatever a training left there."""
    here = Path(folder)
    return {
        name for name in names if not (name in FILES or ((here / name).is_dir() and (here / name / FILES[0]).exists()))
    }
