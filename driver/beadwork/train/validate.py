"""`beadwork validate`: the errors of a committee on frames that it was not trained on, as a page with pictures."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from beadwork.digits import with_bar
from beadwork.errors import LabelError
from beadwork.frame import FloatArray
from beadwork.json_form import Form, Part
from beadwork.log import Alarm
from beadwork.potential.additions import format_additions, same
from beadwork.potential.bundle import format_no_better, members_of, no_better_in
from beadwork.report import page
from beadwork.report.figures import COLOURS, INK
from beadwork.train.calibration import Calibration, Errors, Residuals, calibrate, format_calibration, residuals
from beadwork.train.committee import train_committee
from beadwork.train.dataset import Dataset, Example
from beadwork.train.plan import apart_of, references
from beadwork.train.settings import TrainSettings
from beadwork.train.split import split, unseen

PAGE = "validation.html"
#: fractions of the training frames in a learning curve
CURVE_FRACTIONS = (0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Validation:
    """The result. curve: (frames trained on, Residuals) of each point of a learning curve, the whole set last."""

    committee: Path
    dataset: Dataset
    found: Residuals
    calibration: Mapping[str, Calibration]
    curve: tuple[tuple[int, Residuals], ...] = ()

    @property
    def verdict(self) -> tuple[str, str]:
        """A colour of the page (green, amber, red) and the result in a line."""
        if self.dataset.baseline is None:
            return "green", f"A model of the labels themselves, tested on {len(self.found.examples)} frames"
        found = no_better_in(self.found.measured)
        if not found:
            what = "energies" if self.found.forces is None else "energies and forces"
            return "green", f"Baseline and Δ together are better than the baseline alone, in {what}"
        names = " and ".join({"energy": "energies", "force": "forces"}[one.kind] for one in found)
        if any(one.beyond_errors for one in found):
            return "red", f"This Δ is worse than its baseline alone in {names}: do not serve it"
        return "red", f"This Δ is no better than its baseline alone in {names}"

    @property
    def worse(self) -> str:
        """A message where Δ is no better than its baseline; empty where it is, or where there is no baseline."""
        return "" if self.dataset.baseline is None else format_no_better(self.found.measured)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """What the command prints; an `Alarm` where Δ is no better than its baseline."""
        lines = [
            f"{self.committee}: {len(self.found.examples)} frames that no member saw, labels of {self.dataset.method}"
        ]
        rows = self.rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        if self.worse:
            lines.append(Alarm(self.worse))
        lines.append(format_calibration(self.calibration))
        for frames, found in self.curve:
            lines.append(f"trained on {frames} frames: " + ", ".join(_format_errors(e, u) for e, u in _both(found)))
        return lines

    def rows(self) -> list[tuple[str, ...]]:
        """The table of errors: a header, a row for each composition, and one for all."""
        header = ("composition", "frames", "energy, baseline", "baseline + Δ", "forces, baseline", "baseline + Δ")
        units = ("", "", "meV/atom", "meV/atom", "meV/Å", "meV/Å")
        groups = {**self.found.compositions(), "all": list(range(len(self.found.examples)))}
        rows: list[tuple[str, ...]] = [header, units]
        for name, frames in groups.items():
            cells = [name, str(len(frames))]
            for errors in (
                self.found.baseline_energy,
                self.found.energy,
                self.found.baseline_forces,
                self.found.forces,
            ):
                part = None if errors is None else errors.take(frames)
                cells.append("no labels" if part is None or not len(part.error) else _number(part))
            rows.append(tuple(cells))
        return rows


@dataclass(frozen=True)
class Rmse(Part):
    """A root mean square error."""

    value: Annotated[float, "energies in eV/atom, forces in eV/Å"]
    error: Annotated[float | None, "its standard error, from a bootstrap over blocks; null of too few blocks"]
    label_noise: Annotated[float, "root mean square of the labels' own standard errors, which is part of `value`"]


@dataclass(frozen=True)
class Composition(Part):
    """The errors on frames of one composition, or on `all`. Null is what has no labels."""

    composition: Annotated[str, "as the page names it; the last is `all`"]
    frames: Annotated[int, "how many"]
    energy: Annotated[Rmse | None, "of baseline + Δ"]
    baseline_energy: Annotated[Rmse | None, "of the baseline alone, shifted by the reference energies"]
    forces: Annotated[Rmse | None, "of baseline + Δ"]
    baseline_forces: Annotated[Rmse | None, "of the baseline alone"]


@dataclass(frozen=True)
class Share(Part):
    """Of the errors of the frames on which alpha was not fitted: how many lie inside so many sigma."""

    sigmas: Annotated[int, "1 or 2"]
    before: Annotated[float, "the fraction, alpha left out"]
    after: Annotated[float, "the fraction, with alpha"]
    after_error: Annotated[float | None, "its standard error"]
    expected: Annotated[float, "what a right width gives with this number of members"]


@dataclass(frozen=True)
class Calibrated(Part):
    """The spread held to the errors."""

    alpha: Annotated[float, "by which the spread is multiplied"]
    fitted_on: Annotated[int, "frames"]
    tested_on: Annotated[int, "frames, none of them fitted on"]
    inside: Annotated[list[Share], "inside one and two sigma"]


@dataclass(frozen=True)
class Point(Part):
    """A point of the learning curve."""

    frames: Annotated[int, "trained on"]
    energy: Annotated[Rmse | None, "on the frames held out"]
    forces: Annotated[Rmse | None, "on the frames held out"]


@dataclass(frozen=True)
class Validated(Form):
    """`beadwork validate --json`: the errors on frames that no member saw."""

    KIND = "validate"
    committee: Annotated[str, "its folder"]
    page: Annotated[str, "where the page is"]
    method: Annotated[str, "of the labels"]
    dataset: Annotated[str, "hash of what it was trained on"]
    baseline: Annotated[str | None, "hash of the baseline; null of a model of the labels themselves"]
    frames: Annotated[int, "that no member saw"]
    blocks: Annotated[int, "of frames that are independent of each other: what the error bars count"]
    errors: Annotated[list[Composition], "a row for each composition, and one for all"]
    no_better: Annotated[list[str], "in what Δ is no better than its baseline alone: energy, force; best empty"]
    worse: Annotated[bool, "whether in one of them it is worse by more than the error bars"]
    calibration: Annotated[dict[str, Calibrated], "of `forces` and `energy`, those that could be calibrated"]
    curve: Annotated[list[Point], "with --curve: the learning curve, the whole set last"]


def as_form(validation: Validation, page: Path) -> Validated:
    """The result as an object."""
    found, measured = validation.found, validation.found.measured
    # all: the mean over every frame, not over compositions
    groups = {**found.compositions(), "all": list(range(len(found.examples)))}
    # a model of the labels themselves has no baseline to be held against
    no_better = () if validation.dataset.baseline is None else no_better_in(measured)
    return Validated(
        committee=str(validation.committee),
        page=str(page),
        method=validation.dataset.method,
        dataset=validation.dataset.hash,
        baseline=validation.dataset.baseline,
        frames=measured["frames"],
        blocks=measured["blocks"],
        errors=[
            Composition(
                name,
                len(frames),
                _rmse(found.energy, frames),
                _rmse(found.baseline_energy, frames),
                _rmse(found.forces, frames),
                _rmse(found.baseline_forces, frames),
            )
            for name, frames in groups.items()
        ],
        no_better=[one.kind for one in no_better],
        worse=any(one.beyond_errors for one in no_better),
        calibration={
            what: Calibrated(
                of.alpha,
                *of.frames,
                [Share(k + 1, of.before[k][0], *of.after[k], of.expected[k]) for k in range(len(of.expected))],
            )
            for what, of in validation.calibration.items()
        },
        curve=[Point(frames, _rmse(of.energy), _rmse(of.forces)) for frames, of in validation.curve],
    )


def _rmse(errors: Errors | None, frames: Sequence[int] | None = None) -> Rmse | None:
    part = errors if errors is None or frames is None else errors.take(frames)
    if part is None or not len(part.error):
        return None
    return Rmse(*part.rmse, float(np.sqrt((part.noise**2).mean())))


def validate(
    committee: Path,
    labels: Sequence[Example] | None = None,
    settings: TrainSettings | None = None,
    baseline: Path | None = None,
    progress: Callable[[str], None] = lambda sentence: None,
) -> Validation:
    """Measure the errors of a committee on its held-out frames, or on other labels that no member was trained on.

    settings, baseline: where given, train on fractions of the training frames too, for a learning curve. Raises
    LabelError where there are no such frames, or the labels are of another method or baseline.
    """
    dataset = Dataset.read(committee)  # first: for a wrong folder its error is clearer than that of a missing card
    members = members_of([committee])
    apart = apart_of(members[0])
    testing = dataset.testing
    if labels is not None:
        # their energies are reference energies, and no test of a Δ
        labels = [e for e in labels if not e.isolated]
        testing = unseen(labels, dataset, apart)
        progress(f"{len(testing)} of {len(labels)} labels are neither training frames nor within {apart} steps of one")
        for what, got, wanted in (
            ("method", {e.label.method for e in testing}, dataset.method),
            ("baseline", {e.baseline for e in testing}, dataset.baseline),
            ("additions", {format_additions(same(e.add)) for e in testing}, format_additions(same(dataset.add))),
        ):
            if testing and got != {wanted}:
                raise LabelError(
                    f"the labels have the {what} {got}, the committee was trained on {wanted}: not comparable"
                )
    if not testing:
        raise LabelError(f"{committee} has no held-out frames", "give labels that it was not trained on (--labels)")
    reference = references(members[0])
    found = residuals(testing, members, reference, apart)
    curve = []
    if settings is not None and baseline is not None:
        # of the whole set there is a committee already
        for share in CURVE_FRACTIONS[:-1]:
            part = _part(dataset, share)
            with tempfile.TemporaryDirectory(prefix="beadwork-curve-") as folder:
                progress(f"learning curve: {len(part)} of {len(dataset.training)} frames")
                few = replace(settings, held_out=0.0)  # all points are tested on the same frames, held out already
                paths = train_committee(part, baseline, Path(folder) / "committee", few, None, progress)
                curve.append((len(part), residuals(testing, paths, references(paths[0]), apart)))
        # the committee itself is the last point: it learned from all of them
        curve.append((len(dataset.training), found))
    return Validation(committee, dataset, found, calibrate(found), tuple(curve))


def write_page(validation: Validation, file: Path) -> None:
    """Write the tables and pictures as one self-contained page. Needs matplotlib."""
    v = validation
    rows = v.rows()
    head, body = (
        "".join(
            "<tr>" + "".join(f'<{tag} class="number">{html.escape(c)}</{tag}>' for c in row) + "</tr>" for row in part
        )
        for tag, part in (("th", rows[:2]), ("td", rows[2:]))
    )
    colour, verdict = v.verdict
    judged = f'<div class="verdict {colour}"><strong>{html.escape(verdict)}</strong>'
    sections = [
        judged + (f"<p>{html.escape(v.worse)}.</p></div>" if v.worse else "</div>"),
        "<h2>Errors</h2>",
        "<p>Root mean square errors, with their standard errors from a bootstrap over blocks; fewer than four blocks "
        "have none. Energies of the baseline alone are shifted by the committee's reference energies.</p>",
        f'<div class="wide"><table>{head}{body}</table></div>',
        "<h2>Δ against its labels</h2>",
        _pictures(_parity, v),
        "<p>On the line the committee answers what the label says.</p>",
        "<h2>Spread against error</h2>",
        f"<p>{html.escape(format_calibration(v.calibration))}.</p>",
    ]
    if v.calibration:
        sections += [
            _pictures(_reliability, v),
            "<p>Left: errors sorted by predicted width into bins of equal size; on the line the width is right. Right: "
            "fraction of the errors within so many predicted widths; dashed: the expected fraction for this number of "
            "members.</p>",
        ]
    if v.curve:
        sections += [
            "<h2>Learning curve</h2>",
            _pictures(_curve, v),
            "<p>Where it still falls at the right, more labels would help.</p>",
        ]
    sections.append(
        "<details><summary>What it was trained on (unfold for the hashes)</summary>"
        f"<p>dataset <code>{html.escape(v.dataset.hash)}</code></p>"
        f"<p>baseline <code>{html.escape(str(v.dataset.baseline))}</code></p></details>"
    )
    page.write(
        file,
        f"Validation of {html.escape(v.committee.resolve().name)}",
        f"{len(v.found.examples)} frames that no member saw; labels of {html.escape(v.dataset.method)}",
        sections,
        "Written by <code>beadwork validate</code>; the definitions are in docs/formulas.md of beadwork.",
    )


def _part(dataset: Dataset, share: float) -> list[Example]:
    """A fraction of the training frames, in proportion of each composition; frame by frame, since these test
    nothing."""
    kept = split(dataset.training, share, 0, apart=0)
    return [e for e, take in zip(dataset.training, kept, strict=True) if take]


def _number(errors: Errors) -> str:
    value, bar = (1e3 * x for x in errors.rmse)
    text = with_bar(value, bar)
    noise = 1e3 * float(np.sqrt((errors.noise**2).mean()))
    # an error cannot come below the noise of its labels, so that is told beside it
    return text if noise == 0 else f"{text} (noise {noise:.2g})"


def _both(found: Residuals) -> list[tuple[Errors, str]]:
    pair = [(found.energy, "meV/atom"), (found.forces, "meV/Å")]
    return [(errors, unit) for errors, unit in pair if errors is not None]


def _format_errors(errors: Errors, unit: str) -> str:
    return f"{_number(errors)} {unit}"


def _pictures(draw: Callable[[Validation, Any], None], v: Validation) -> str:
    """Draw two panels and return them as an element of the page."""
    drawn, panels = page.panels(2)
    draw(v, panels)
    return page.pictures(drawn, draw.__name__[1:])


def _parity(v: Validation, panels: Any) -> None:
    # one colour a solute: what goes wrong goes wrong for one kind
    names = sorted({e.solute for e in v.found.examples})
    which = np.array([names.index(e.solute) for e in v.found.examples])
    pairs = (
        (v.found.energy, v.found.baseline_energy, "Δ energy less references (meV/atom)"),
        (v.found.forces, v.found.baseline_forces, "Δ force (eV/Å)"),
    )
    for panel, (errors, baseline, what), unit in zip(panels, pairs, (1e3, 1.0), strict=True):
        if errors is None or baseline is None:
            panel.set_axis_off()
            panel.text(0.5, 0.5, "no forces among these labels", ha="center")
            continue
        label = -unit * baseline.error  # Δ, without the references
        for at, name in enumerate(names):
            here = which[errors.frame] == at
            x, y = label[here], label[here] + unit * errors.error[here]
            panel.errorbar(
                x, y, xerr=unit * errors.noise[here] if errors.noise.any() else None, fmt=".", ms=3, lw=0.6,
                color=COLOURS[at % len(COLOURS)], label=name,
            )  # fmt: skip
        # the diagonal, on which a perfect committee lies
        ends = [float(label.min()), float(label.max())]
        panel.plot(ends, ends, "-", color=INK, lw=0.8)
        panel.set_title(what, fontsize=10)
        panel.set_xlabel("label")
        panel.set_ylabel("committee")
        panel.legend(frameon=False, fontsize=8)


def _reliability(v: Validation, panels: Any) -> None:
    sigmas = np.linspace(0, 4, 81)
    for (errors, unit), name, colour in zip(_both(v.found), ("energy", "forces"), COLOURS, strict=False):
        if name not in v.calibration:
            continue
        alpha = v.calibration[name].alpha
        errors = errors.take(v.found.halves(errors)[1])  # the half on which alpha was not fitted
        # with the labels' noise in it, since the error against the label has it too
        width = errors.width(alpha)
        # of equal size, eight errors at least: fewer would make a scatter of points
        bins = np.array_split(np.argsort(width), max(2, min(10, len(width) // 8)))
        rms = [1e3 * float(np.sqrt((errors.error[b] ** 2).mean())) for b in bins]
        predicted = [1e3 * float(np.sqrt((width[b] ** 2).mean())) for b in bins]
        panels[0].loglog(predicted, rms, "o-", ms=4, color=colour, label=f"{name} ({unit})")
        for scale, style in ((1.0, ":"), (alpha, "-")):
            ratio = np.sort(np.abs(errors.error) / np.maximum(errors.width(scale), 1e-12))
            share = np.searchsorted(ratio, sigmas) / len(ratio)
            when = "before" if style == ":" else "after"
            panels[1].plot(sigmas, 100 * share, style, color=colour, label=f"{name}, {when} alpha")
        expected = [100 * errors.expected(alpha, s) for s in sigmas]
        panels[1].plot(sigmas, expected, "--", color=colour, lw=1.0, label=f"{name}, expected")
    low, high = _limits(panels[0])
    panels[0].plot([low, high], [low, high], color=INK, lw=0.8)
    panels[0].set_xlabel("predicted width (unit of the curve)")
    panels[0].set_ylabel("root mean square error")
    panels[1].set_xlabel("error over predicted width (no unit)")
    panels[1].set_ylabel("errors inside (%)")
    for panel in panels:
        panel.legend(frameon=False, fontsize=7)


def _limits(panel: Any) -> tuple[float, float]:
    ends: FloatArray = np.array([panel.get_xlim(), panel.get_ylim()])
    return float(ends.min()), float(ends.max())


def _curve(v: Validation, panels: Any) -> None:
    for panel, at, what in zip(panels, (0, 1), ("energy (meV/atom)", "forces (meV/Å)"), strict=True):
        points = [(n, _both(found)[at][0].rmse) for n, found in v.curve if at < len(_both(found))]
        if not points:
            panel.set_axis_off()
            continue
        panel.errorbar(
            [n for n, _ in points],
            [1e3 * r for _, (r, _) in points],
            [1e3 * b for _, (_, b) in points],
            fmt="o-",
            capsize=3,
        )
        # errors fall as a power of the number of frames, which is a line here
        panel.set(xscale="log", yscale="log", xlabel="frames trained on", ylabel=f"held-out error: {what}")
