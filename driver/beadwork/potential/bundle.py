"""Model bundles: a folder with a model's weights, or TorchScript, an optional native model, and a card about them."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NewType, TypeVar

import tomli_w

from beadwork.config import DTYPES, SENSE, sensible, weighs
from beadwork.digits import with_bar
from beadwork.disk import reading, write_whole
from beadwork.errors import ModelError
from beadwork.toml import tomllib

CARD = "card.toml"
MODEL = "model.pt"
WEIGHTS = "model.safetensors"
NATIVE = "native.json"
NOVELTY = "novelty.npz"
HEADS = "heads.npz"
COMMITTEE = "committee.toml"
#: tables of a card: what its model answers for one small structure, and the packages' versions that were there
REFERENCE_ANSWER, MADE_WITH = "reference_answer", "made_with"
#: committee.toml's table of quantiles of the largest force spread of a frame, on frames held out; and which of them
#: the selection window begins at by default
SPREAD_TABLE, USUAL_QUANTILE = "spread_held_out", 0.99
FORMAT = 1
UNITS = {"energy": "eV", "length": "angstrom"}
#: bytes: no model has a larger file, and no card is larger, even with a line for each of 100,000 frames. A bundle may
#: come from anyone, and a huge file would fill the memory of whoever reads it
MAX_FILE_BYTES, MAX_CARD_BYTES = 2**34, 2**24
#: characters; longer is no path that the system takes
MAX_PATH_LENGTH = 4096
AnyEngine = TypeVar("AnyEngine")
#: what each engine runs, the fastest first
FILES = {"native": NATIVE, "torchscript": MODEL, "eager": WEIGHTS}


@dataclass(frozen=True, slots=True)
class Card:
    """What a bundle's card.toml says.

    path: the bundle's folder. elements: atomic numbers, ascending. cutoff: Å. dtype: the precision it was trained in.
    head: the head that is served, None for a model with only one. sha256: of each file in the bundle.
    about: everything else (what it was trained on and how, its errors), as it stands in the file.
    """

    path: Path
    name: str
    elements: tuple[int, ...]
    cutoff: float
    dtype: str
    head: str | None
    sha256: Mapping[str, str]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def native(self) -> bool:
        """Whether the bundle has a native model."""
        return NATIVE in self.sha256

    @property
    def answers(self) -> tuple[str, ...]:
        """What the model answers: 'energy', 'dipole' or 'polarizability', one or more."""
        found = self.about.get("answers", ["energy"])
        if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
            raise ModelError(f"the card of {self.path} has answers = {found!r}", "import the model again")
        return tuple(found)

    def without(self, engine: str) -> str | None:
        """Why the bundle has nothing that an engine of this name could run; None where it has."""
        if FILES[engine] in self.sha256:
            return None
        return f"no ({self.about.get(engine, 'not made')})"

    @property
    def held(self) -> bool:
        """Whether what its files answer is held against the card when they are opened (`reference_answer`)."""
        return REFERENCE_ANSWER in self.about

    @property
    def novelty(self) -> Path | None:
        """The file that says what the model was trained on, where the bundle has one."""
        return self.path / NOVELTY if NOVELTY in self.sha256 else None

    @property
    def heads(self) -> Path | None:
        """The file that tells its heads apart, where the bundle is a committee on one trunk."""
        return self.path / HEADS if HEADS in self.sha256 else None

    @property
    def hash(self) -> str:
        """The weights' hash (and its head's or heads'), prefixed: what queue and log call this model.

        Of a bundle without a file of weights, that of its TorchScript model.
        """
        # of no file that is made from the weights: it must not give the same model another name. Each is held against
        # the card's reference answer when it is opened
        model = self.sha256.get(WEIGHTS) or self.sha256[MODEL]
        which = self.head or self.sha256.get(HEADS)
        return "sha256:" + (hashlib.sha256(f"{model} {which}".encode()).hexdigest() if which else model)


@dataclass(frozen=True, slots=True)
class Committee:
    """What a committee.toml says: alpha of forces and of energies, and a weight for each member (folder names beside
    the file).

    energy_alpha: alpha's, where the file does not say. usual: eV/Å after alpha, what the largest force spread of a
    frame stays below in 99 of 100 frames held out; None where the file does not say.
    """

    alpha: float
    energy_alpha: float
    weights: Mapping[str, float]
    usual: float | None = None


def load_card(bundle: str | Path) -> Card:
    """Read a bundle's card. Raises ModelError for a folder that is no bundle, or a card that is incomplete."""
    path = Path(bundle)
    if not path.is_dir():
        what = "a file; import it first (beadwork models import)" if path.exists() else "missing"
        raise ModelError(
            f"the model bundle {path} is {what}", f"a bundle is a folder with {CARD} and {WEIGHTS} or {MODEL}"
        )
    data = _read_toml(path / CARD)
    try:
        if data["format"] != FORMAT:
            raise ModelError(
                f"{path / CARD} has format {data['format']!r}, this beadwork reads {FORMAT}", "import the model again"
            )
        elements = tuple(sorted(int(z) for z in data["elements"]))
        card = Card(
            path=path,
            name=str(data["name"]),
            elements=elements,
            cutoff=float(data["cutoff"]),
            dtype=str(data["dtype"]),
            head=data.get("head"),
            sha256={str(k): str(v) for k, v in data["sha256"].items()},
            about={k: v for k, v in data.items() if k not in _CARD_FIELDS},
        )
        units = dict(data["units"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{path / CARD} lacks an entry or has a wrong one ({type(error).__name__}: {error})", "import it again"
        ) from error
    # converted once, when a model is made; here a factor could only be forgotten
    if units != UNITS:
        raise ModelError(
            f"{path / CARD} declares units {units}", f"beadwork serves models in {UNITS}: convert the model"
        )
    if card.dtype not in DTYPES:
        raise ModelError(f"{path / CARD} says dtype {card.dtype!r}", f"it must be one of {', '.join(DTYPES)}")
    if not elements or not card.cutoff > 0 or not {MODEL, WEIGHTS} & set(card.sha256):
        raise ModelError(
            f"{path / CARD} names no elements, no cutoff, or neither {WEIGHTS} nor {MODEL}", "import the model again"
        )
    return card


#: of a bundle whose files are those that its card names: what an engine opens
Checked = NewType("Checked", Card)


def check(bundle: str | Path) -> Checked:
    """Read the card and verify every file's sha256. Raises ModelError for a missing, truncated or changed file.

    A card is read from anyone: what it names is looked at inside the bundle alone, and not if it is huge.
    """
    card = load_card(bundle)
    for name, expected in card.sha256.items():
        if Path(name).name != name or name == "..":  # a path would let a card probe files outside its bundle
            raise ModelError(
                f"{card.path / CARD} names {name!r}, which is no file of the bundle", "import the model again"
            )
        file = card.path / name
        if not file.is_file():
            raise ModelError(
                f"{file} is named in the card but missing", "copy the whole bundle or import the model again"
            )
        # before it is hashed: a file of terabytes would take hours
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ModelError(f"{file} has {file.stat().st_size} bytes, more than any model", "import the model again")
        got = sha256(file)
        if got != expected:
            raise ModelError(
                f"{file} is not the file that its card describes (sha256 {got[:12]}… instead of {expected[:12]}…, "
                f"{file.stat().st_size} bytes): truncated or changed",
                "copy it again or import the model again",
            )
    return Checked(card)


def reopen(engine: Callable[..., AnyEngine], bundle: Path, sha256: Mapping[str, str], *how: object) -> AnyEngine:
    """Open a bundle again, for a copy of an engine. Raises ModelError where its files have changed since."""
    card = check(bundle)
    # a copy that silently had other weights would be a wrong result
    if card.sha256 != sha256:
        raise ModelError(f"{bundle} has changed since the engine that was copied was opened", "load the model again")
    return engine(card, *how)


def format_card(bundle: str | Path) -> str:
    """Check a bundle and format its card in a few lines. Raises ModelError."""
    card = check(bundle)
    lines = [
        f"{card.name}: atomic numbers {', '.join(map(str, card.elements))}; cutoff {card.cutoff:g} Å; "
        f"trained in {card.dtype}" + (f"; head {card.head}" if card.head else ""),
        *(f"{name}: {card.without(name) or 'yes'}" for name in FILES),
        *(f"{key}: {_brief(key, value)}" for key, value in card.about.items() if key not in FILES),
        *(f"{name}: sha256 {value}" for name, value in card.sha256.items()),
    ]
    return "\n".join(lines)


def _brief(key: str, value: Any) -> Any:
    if key == REFERENCE_ANSWER and isinstance(value, Mapping):
        return f"{value.get('energy')} eV for {len(value.get('numbers', ()))} atoms"
    return value


def write_card(bundle: Path, card: Mapping[str, Any], without: str | None = None) -> Card:
    """Write card.toml for the files that are in the folder now, except `without`; adds format, units and hashes."""
    files = [name for name in (*FILES.values(), NOVELTY, HEADS) if (bundle / name).is_file() and name != without]
    hashes = {name: sha256(bundle / name) for name in files}
    about = {k: v for k, v in card.items() if v is not None}  # TOML has no null
    data = {"format": FORMAT, **about, "units": UNITS, "sha256": hashes}
    write_whole(bundle / CARD, tomli_w.dumps(data))
    return load_card(bundle)


def amend_card(
    bundle: Path, file: str | None = None, write: Callable[[Path], None] = lambda path: None, **about: Any
) -> Card:
    """Add entries to a bundle's card: what was found out about the model after it was made.

    file: NOVELTY, where that is written, or written anew, by `write`. Raises ModelError for a bundle whose files are
    not those that its card describes.
    """
    check(bundle)
    data = {k: v for k, v in _read_toml(bundle / CARD).items() if k not in ("format", "units", "sha256")}
    if file is not None:
        # np.savez appends .npz to a name that does not end so: the ending stays last
        part = bundle / f".{os.getpid()}.{file}"
        write(part)
        write_card(bundle, data, without=file)  # a kill from here on leaves a bundle without it, and no damaged one
        os.replace(part, bundle / file)
    return write_card(bundle, data | about)


def load_committee(members: Sequence[Path]) -> Committee | None:
    """The committee.toml beside these bundles, where there is one and it is about exactly these.

    Raises ModelError for one that cannot be read, or with numbers that make no sense.
    """
    folders = {m.resolve().parent for m in members}
    if len(folders) != 1:  # members from several places: no single card is about them
        return None
    file = folders.pop() / COMMITTEE
    if not file.exists():
        return None
    data = _read_toml(file)
    names = [m.resolve().name for m in members]
    # a card of before energies had an alpha of their own has one alpha for both
    try:
        listed = [str(n) for n in data.get("members", names)]
        weights = [float(w) for w in data.get("weights", [1.0] * len(listed))]
        alpha = float(data.get("alpha", 1.0))
        energy_alpha = float(data.get("energy_alpha", alpha))
        usual = _usual(data)
        # by name: the order of the members on a command line is free
        paired = dict(zip(listed, weights, strict=True))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{file} is wrong ({type(error).__name__}: {error})",
            "it holds alpha and energy_alpha (numbers), members and weights (lists of one length), and in "
            f"[{SPREAD_TABLE}] the quantiles of the spread on frames held out",
        ) from error
    if sorted(listed) != sorted(names):
        return None
    if not (sensible(alpha) and sensible(energy_alpha)) or not any(weights) or not all(map(weighs, weights)):
        raise ModelError(
            f"{file} has alpha {alpha}, energy_alpha {energy_alpha} and weights {weights}",
            f"both alphas must be {SENSE}, weights too, or 0, but not all 0",
        )
    if usual is not None and not (math.isfinite(usual) and usual >= 0):
        raise ModelError(
            f"{file} has {usual} in [{SPREAD_TABLE}]", "quantiles of a spread are numbers that are not negative"
        )
    return Committee(alpha, energy_alpha, paired, usual)


def members_of(delta: Sequence[str | Path]) -> list[Path]:
    """The bundles that `--delta` stands for.

    Several paths, or one with a card, are the bundles themselves. One folder with a committee.toml is all members that
    it lists. One file is a pointer: its first line names such a folder, counted from the file's own. Raises ModelError.
    """
    # several paths are bundles by themselves: a list of committees has no meaning
    if len(delta) != 1:
        return [Path(member) for member in delta]
    folder = Path(delta[0])
    if folder.is_file():
        with folder.open(encoding="utf-8", errors="replace") as file:
            named = file.readline(MAX_PATH_LENGTH + 1).strip()
        # a machine that crashed can leave a file of the right length full of NULs (delayed allocation)
        if not named or "\0" in named or len(named) > MAX_PATH_LENGTH:
            raise ModelError(f"{folder} names no committee", "its first line must be the path of a committee's folder")
        pointer, folder = folder, (folder.parent / named).resolve()
        if not (folder / COMMITTEE).exists():
            raise ModelError(
                f"{pointer} names {folder}, where there is no {COMMITTEE}", "point it to a committee's folder"
            )
    if not (folder / COMMITTEE).exists():
        return [folder]
    listed = _read_toml(folder / COMMITTEE).get("members")
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
        raise ModelError(f"{folder / COMMITTEE} lists no members", "give it members = [folder names beside it]")
    return [folder / name for name in listed]


def write_pointer(pointer: Path, committee: Path) -> None:
    """Let a pointer file name this committee's folder; a reader finds the old name or the new one, never neither.

    Raises ModelError for a folder that is no committee, or whose files are not those that the cards describe.
    """
    if not (committee / COMMITTEE).exists():
        raise ModelError(f"{committee} has no {COMMITTEE}: it is no committee's folder", "name one that has")
    # a running server would refuse it too, but only after it has loaded it
    for member in members_of([committee]):
        check(member)
    # relative, so that a project's folder can be moved, or mounted elsewhere on a cluster's nodes
    target = os.path.relpath(committee.resolve(), pointer.resolve().parent)
    try:
        write_whole(pointer, target + "\n")
    except OSError as error:
        raise ModelError(f"{pointer} cannot be written ({error})", "it still names what it named") from error


#: what to do about a Δ that is no better than its baseline
LEARN_MORE = "label more frames or train longer before you serve it"


def format_errors(held_out: Mapping[str, Any]) -> str:
    """The errors of a card in one sentence: with Δ, of the baseline alone where it is known, and the spread's alpha.

    held_out: the table of that name in a card or in committee.toml.
    """
    if not held_out.get("frames"):
        return "no frames were held out, so its errors are not known"
    told = []
    for what, kind, unit, key in (
        ("energies", "energy", "meV/atom", "rmse_meV_per_atom"),
        ("forces", "force", "meV/Å", "rmse_meV_per_angstrom"),
    ):
        own, base = held_out.get(f"{kind}_{key}"), held_out.get(f"baseline_{kind}_{key}")
        if own is not None:
            alone = "" if base is None else f" ({with_bar(*base)} with the baseline alone)"
            told.append(f"{what} {with_bar(*own)} {unit}{alone}")
    head = f"root mean square errors on {held_out['frames']} frames that no member saw: {', '.join(told)}"
    return f"{head}; {held_out['alpha']}" if "alpha" in held_out else head


def format_no_better(held_out: Mapping[str, Any]) -> str:
    """A message that says where a Δ is no better than its baseline alone, from the errors in its card.

    Empty where Δ is better, or the card has no errors. held_out: the table of that name in committee.toml: for `energy`
    and `force` the root mean square error and its error bar, and the same of the baseline. It ends with LEARN_MORE.
    """
    said = _no_better(held_out)
    return f"{said}; {LEARN_MORE}" if said else ""


@dataclass(frozen=True, slots=True)
class NoBetter:
    """Where a Δ is no better than its baseline alone. kind: 'energy' or 'force'. own, base: root mean square error and
    its error bar (NaN where there is none), in `unit`. beyond_errors: they differ by more than the two bars."""

    kind: str
    unit: str
    own: tuple[float, float]
    base: tuple[float, float]

    @property
    def beyond_errors(self) -> bool:
        """Whether the error bars do not overlap; False where there are none."""
        return self.own[0] - self.own[1] > self.base[0] + self.base[1]


def no_better_in(held_out: Mapping[str, Any]) -> tuple[NoBetter, ...]:
    """In what a Δ is no better than its baseline alone, from the errors in its card; see `format_no_better`."""
    found = []
    for kind, unit, key in (
        ("energy", "meV/atom", "rmse_meV_per_atom"),
        ("force", "meV/Å", "rmse_meV_per_angstrom"),
    ):
        own, base = held_out.get(f"{kind}_{key}"), held_out.get(f"baseline_{kind}_{key}")
        if isinstance(own, list) and isinstance(base, list) and own[0] > base[0]:
            found.append(NoBetter(kind, unit, (own[0], own[1]), (base[0], base[1])))
    return tuple(found)


def _no_better(held_out: Mapping[str, Any]) -> str:
    found = no_better_in(held_out)
    if not found:
        return ""
    names = {"energy": "energies", "force": "forces"}
    worse = any(one.beyond_errors for one in found)
    told = [
        f"{names[one.kind]} are wrong by {with_bar(*one.own)} {one.unit} with Δ, {with_bar(*one.base)} without"
        for one in found
    ]
    return (
        f"in {' and '.join(names[one.kind] for one in found)} this Δ is {'worse' if worse else 'no better'} than its "
        f"baseline alone: on {held_out.get('frames')} frames that no member saw {' and '.join(told)}"
    )


def unnamed_baseline(members: Sequence[Card]) -> list[Card]:
    """Those whose cards do not say of which baseline they are the difference."""
    return [card for card in members if "baseline" not in card.about]


def worse_than_baseline(committee: Path) -> str:
    """The same for a committee's folder, without LEARN_MORE. Raises ModelError where it cannot be read."""
    file = committee / COMMITTEE
    with reading(file, ModelError, "correct [held_out] in it, or copy it again"):
        held_out = _read_toml(file).get("held_out", {})
        return _no_better(held_out) if isinstance(held_out, Mapping) else ""


def sha256(file: Path) -> str:
    """Hash a file block by block: models of gigabytes need not fit into memory."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _usual(data: Mapping[str, Any]) -> float | None:
    """The quantile of the largest force spread of a frame, eV/Å; None where the file has none."""
    if SPREAD_TABLE not in data:
        return None
    shares = [float(share) for share in data[SPREAD_TABLE]["shares"]]
    found = dict(zip(shares, data[SPREAD_TABLE]["force_eV_per_angstrom"], strict=True))
    return float(found[USUAL_QUANTILE])


_CARD_FIELDS = ("format", "name", "elements", "cutoff", "dtype", "head", "units", "sha256")


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_CARD_BYTES:
            raise ModelError(f"{file} has {file.stat().st_size} bytes, more than any card", "import the model again")
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{file} is missing, so {file.parent} is no model bundle",
            "import a model with: beadwork models import FILE",
        ) from error
    except (OSError, ValueError) as error:  # a ValueError of Python's own: an integer of thousands of digits
        raise ModelError(
            f"{file} cannot be read as TOML ({error})", "copy it again or import the model again"
        ) from error


def committee_hash(models: Sequence[str], weights: Sequence[float] = ()) -> str:
    """Return `sha256:` and the hash of the models' hashes in their order, and of the members' weights if they differ.

    weights: in any scale; what counts are six digits of each one's part.
    """
    # six digits: the same weights read from TOML and divided by their sum differ in the last bits
    lines = [prefixed(model) for model in models]
    if len(set(weights)) > 1:
        lines += [f"weight {weight / sum(weights):.6g}" for weight in weights]
    return prefixed(hashlib.sha256("\n".join(lines).encode()).hexdigest())


def prefixed(digest: str) -> str:
    """`sha256:` before a digest: ASE's database refuses strings that read as numbers, which some digests do."""
    return digest if digest.startswith("sha256:") else f"sha256:{digest}"
