"""Draw docs/doctor.svg: what `beadwork doctor` says of the shipped H2 in water. python docs/draw_doctor.py

The models have never seen H2, so there is something to say; a second visit is to an input in which much is wrong.
Nothing is drawn that was not said in these runs.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

from beadwork.potential.threads import set_threads

set_threads(len(os.sched_getaffinity(0)))

from beadwork.config import resolve  # noqa: E402 - threads are set before PyTorch is loaded
from beadwork.doctor.report import MARGIN, examine, line, verdict  # noqa: E402

ROOT = Path(__file__).parents[1]
OPTIONS = "--baseline $MODELS/baseline --delta $MODELS/delta-[0-3] --queue queue.db --keep-force 0.01 0.5"
COLUMNS, LINE, ADVANCE, EDGE = 124, 18, 7.83, 16
PAINT = {"green": "#4ec970", "amber": "#f0b440", "red": "#ff6b6b"}


def said() -> list[tuple[str, str]]:
    """Every line of both visits, with the colour that its first word has."""
    models = ROOT / "models" / "water-revpbe0-d3"
    typed = {
        "baseline": str(models / "baseline"),
        "delta": [str(models / f"delta-{k}") for k in range(4)],
        "queue": "queue.db",
        "keep_force": [0.01, 0.5],
    }
    lines = visit(f"beadwork doctor input.xml {OPTIONS}", ROOT / "inputs" / "h2-water", typed)
    with tempfile.TemporaryDirectory() as folder:
        careless = Path(folder)
        start = (ROOT / "inputs" / "water" / "init.xyz").read_text()
        (careless / "init.xyz").write_text(start.replace("cell{angstrom} positions{angstrom}", ""))
        xml = (ROOT / "inputs" / "water" / "input.xml").read_text()
        xml = xml.replace("<latency>1e-3</latency>", "<timeout>5</timeout>").replace("_size>16<", "_size>8<")
        (careless / "input.xml").write_text(xml)
        note = "   # water, in a hurry: no units in init.xyz, a timeout, half a batch"
        lines += [("", ""), *visit(f"beadwork doctor input.xml …{note}", careless, typed)]
    return lines


def visit(command: str, folder: Path, typed: dict[str, object]) -> list[tuple[str, str]]:
    """One visit, in this folder."""
    os.chdir(folder)
    found = list(examine(resolve({**typed, "simulation": "input.xml"})))
    lines = [("", f"$ {command}")]
    for finding in found:
        first, *more = line(finding, width=COLUMNS).splitlines()
        lines += [(finding.colour, first), *(("", text) for text in more)]
    os.chdir(ROOT)
    return [*lines, ("", verdict(found))]


def draw(lines: list[tuple[str, str]]) -> str:
    """A terminal's look, with no font or script from elsewhere."""
    width, height = COLUMNS * ADVANCE + 2 * EDGE, len(lines) * LINE + 2 * EDGE
    body = []
    for k, (colour, text) in enumerate(lines):
        y = EDGE + (k + 0.75) * LINE
        word = len(colour)
        if colour:
            body.append(f'<text x="{EDGE}" y="{y}" fill="{PAINT[colour]}" font-weight="bold">{colour}</text>')
            text = " " * word + text[word:]
        fill = "#9ad1ff" if text[MARGIN:].startswith("->") or text.startswith("$") else "#e6e6e6"
        body.append(f'<text x="{EDGE}" y="{y}" fill="{fill}">{escape(text)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="13">\n'
        "<style>text { white-space: pre }</style>\n"
        f'<rect width="100%" height="100%" rx="6" fill="#16191d"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


if __name__ == "__main__":
    (ROOT / "docs" / "doctor.svg").write_text(draw(said()))
