"""`beadwork label`: what a run would do, and the run with its progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from beadwork.errors import ConfigError, LabelError
from beadwork.harvest.queue import CLAIMED, FAILED, Queue
from beadwork.label.run import label
from beadwork.label.selection import atoms_of, one_method, possible_rows, reason_to_fail, rows_to_label
from beadwork.label.spec import Spec
from beadwork.label.worker import DONE, Outcome, file_of, folder_of, part_of
from beadwork.log import logger, shows_progress


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would do. seconds: of each label, rough. refused: rows that would fail, and why."""

    spec: Spec
    method: str
    formulas: Counter[str]
    seconds: tuple[float, ...]
    refused: dict[int, str]
    computed: int

    def __str__(self) -> str:
        lines = [f"method     {self.method}"]
        sizes = ", ".join(f"{count} {name}" for name, count in self.formulas.most_common(8))
        more = len(self.formulas) - 8
        lines.append(
            f"labels     {len(self.seconds)}" + (f": {sizes}" if sizes else "") + (f", {more} more" if more > 0 else "")
        )
        if self.computed:
            lines.append(f"computed   {self.computed} of them before, to be stored only")
        workers = self.spec.jobs.at_once
        # however many workers there are, the longest label takes its time
        wall = max([sum(self.seconds) / workers, *self.seconds])
        total, longest = (format_duration(found) for found in (sum(self.seconds), max(self.seconds, default=0.0)))
        lines.append(
            f"time       about {format_duration(wall)} with {workers} worker{'s' * (workers > 1)} "
            f"({total} in all, the longest {longest}); rough"
        )
        lines += [f"fail       row {id}: {reason}" for id, reason in self.refused.items()]
        return "\n".join(lines)


def command(
    queue: Queue,
    spec: Spec,
    *,
    most: int | None = None,
    by: Path | None = None,
    mix: bool = False,
    again: bool = False,
    dry: bool = False,
) -> str:
    """The command `beadwork label`, with a progress bar on stderr; returns the text to print.

    by: the bundle whose features choose the most useful frames instead of the oldest. again: failed frames too.
    dry: only report what would be done. Raises LabelError where every frame failed, and as `label` and `choose` do.
    """
    ids, chosen = None, ""
    if by is not None:
        if most is None:
            raise ConfigError(f"the number of frames that {by} is to choose is missing", "give --most as well")
        from beadwork.label.choose import from_queue

        rows = possible_rows(queue, spec, _print_failure, again=again, mix=mix, dry=dry)
        ids, choice = from_queue(queue, rows, by, most, lambda row: atoms_of(row, spec))
        chosen = f"{choice}\n" if choice else ""
    if dry:
        return f"{chosen}{estimate(queue, spec, ids=ids, most=most, mix=mix, again=again)}"
    from tqdm import tqdm

    with tqdm(disable=None if shows_progress() else True, unit="label", dynamic_ncols=True) as bar:

        def watch(told: Outcome, of: int) -> None:
            bar.total = of
            bar.update()
            _print_failure(told, of)

        report = label(queue, spec, ids=ids, most=most, mix=mix, again=again, watch=watch)
    # some labels and some failures is a success: the reasons are in the queue
    failed = [told for told in report.told if told.status == FAILED]
    if failed and not report.count(DONE):
        raise LabelError(f"no frame was labelled, {report}; the first reason (row {failed[0].id}): {failed[0].reason}")
    # this run has none any more: who sees that nothing was labelled wants to know that somebody else is at it
    others = len(queue.rows(status=CLAIMED))
    return f"{chosen}{report}" + (f"; {others} claimed by others (beadwork queue list --status claimed)" * bool(others))


def _print_failure(told: Outcome, of: int) -> None:
    """Log a failure, above the progress bar where there is one."""
    if told.status == FAILED:
        logger.warning("row %d failed: %s", told.id, told.reason)


def estimate(
    queue: Queue,
    spec: Spec,
    *,
    ids: Sequence[int] | None = None,
    most: int | None = None,
    mix: bool = False,
    again: bool = False,
) -> Estimate:
    """Report what `label` would do, and change nothing. again: as if failed rows waited again."""
    labeller = spec.labeller()
    one_method(queue, labeller.method, spec, mix)
    folder = folder_of(queue)
    formulas: Counter[str] = Counter()
    seconds, refused, computed = [], {}, 0
    for row in rows_to_label(queue, spec, labeller, ids, most, again):
        reason = reason_to_fail(row, spec, labeller)
        if reason is not None:
            refused[row.id] = reason
            continue
        part = part_of(row, spec)
        known = file_of(folder, row, spec, labeller, part).exists()
        computed += known
        seconds.append(0.0 if known else labeller.seconds(part.frame))
        formulas[str(part.frame.to_atoms().get_chemical_formula())] += 1
    return Estimate(spec, labeller.method, formulas, tuple(seconds), refused, computed)


def format_duration(seconds: float) -> str:
    """Seconds in the unit of which there are two at least."""
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} s"
