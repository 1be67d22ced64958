"""Faults that were put into beadwork on purpose, one at a time: `make mutants` sees that the fast tests notice each.

Each is a text that stands once in its file (tests/mutants/test_table.py holds that), what takes its place, the tests
that run, and what it would mean for a user. A new part of the package gets its own.
"""

from __future__ import annotations

from dataclasses import dataclass

PACKAGE = "driver/beadwork/"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault. file: from the root. tests: files of them, from tests/, or with :: one test of a slow file."""

    file: str
    old: str
    new: str
    tests: str
    meaning: str


def _in(file: str, old: str, new: str, tests: str, meaning: str) -> Mutant:
    return Mutant(PACKAGE + file, old, new, tests, meaning)


SERVER = "serve/test_server.py"
PROTOCOL = "ipi/test_protocol.py"
POTENTIAL = "potential/test_potential.py"
WEIGHTING = "potential/test_weighting.py"
QUEUE = "harvest/test_queue.py"
SELECT = "harvest/test_select.py"
SWAP = "serve/test_hot_swap.py"
ENGINES = "potential/test_auto_engine.py"
BUNDLE = "potential/test_bundle.py"
NOVELTY = "potential/test_novelty.py"
LIMITS = "potential/test_limits.py"
SPLIT = "train/test_split.py"
GRAPH = "potential/test_graph.py"
CUTOFF = f"{GRAPH}::test_a_pair_at_the_cutoff_is_none"
CROWD = f"{GRAPH}::test_a_collapsed_cell_is_refused_before_its_pairs_are_counted"
TOP = f"{GRAPH}::test_atoms_on_top_of_each_other_are_named"
BAD = f"{GRAPH}::test_bad_frames_are_refused"
LOOP = f"{ENGINES}::test_virials_against_a_loop"
PICKLE = f"{BUNDLE}::test_pickle_runs_nothing_without_trust"
CARD = f"{BUNDLE}::test_bad_bundles_are_refused"
REPLY = "serve/test_reply.py"
RESPONSE = "potential/test_response.py"
SPECTRA = "analyse/test_response.py"
PACKED = "potential/test_torchscript.py::test_the_packed_way_is_the_plain_way"

MUTANTS = (
    # what goes over the wire
    _in("serve/server.py", "cells.transpose(0, 2, 1)", "cells", SERVER, "a tilted cell is transposed on the wire"),
    _in("pes.py", "np.transpose(cell)", "cell", "test_pes.py", "the same in i-PI's <ffdirect>"),
    _in("serve/server.py", "[first] * BOHR", "[first]", SERVER, "positions are taken for Å"),
    _in("serve/reply.py", "evaluation.energies / HARTREE", "evaluation.energies", SERVER, "energies are sent in eV"),
    _in("serve/reply.py", "-1, atoms, 3) / FORCE", "-1, atoms, 3) / HARTREE", SERVER, "forces are sent per Å"),
    _in("serve/reply.py", "evaluation.virials / HARTREE", "-evaluation.virials / HARTREE", SERVER, "virial: the sign"),
    _in("serve/reply.py", "forces[index]", "forces[index[::-1]]", SERVER, "beads get each other's forces"),
    _in("serve/reply.py", '("dipole", BOHR)', '("dipole", 1.0)', REPLY, "dipoles are sent in e Å"),
    _in("serve/reply.py", "BOHR**2 / HARTREE)", "BOHR / HARTREE)", REPLY, "polarizabilities: a Bohr too few"),
    _in("potential/response.py", "dim=2,", "dim=1,", RESPONSE, "Born charges are transposed"),
    _in("potential/response.py", "+ fixed[:, None, None]", "- fixed[:, None, None]", RESPONSE, "oxidation: the sign"),
    _in(
        "potential/response.py",
        "if len(crossing):",
        "if len(crossing) < 0:",
        RESPONSE,
        "charges of a cell have a dipole",
    ),
    _in("analyse/response.py", "/ np.sinc(half / np.pi) ** 2", "", SPECTRA, "high wavenumbers are too weak"),
    _in(
        "ipi/outputs.py",
        "while into and next(reversed(into)) >= step:",
        "while False:",
        "ipi/test_outputs.py",
        "what was given up at a RESTART counts",
    ),
    _in(
        "analyse/integrate.py",
        "* _missing_beads(run, name)",
        "",
        "analyse/test_integrate.py",
        "a contracted force counts too little",
    ),
    _in(
        "train/duplicates.py",
        "result: FloatArray = left @ right",
        "result: FloatArray = right.swapaxes(-1, -2)",
        "train/test_dataset.py",
        "a turned copy is another structure",
    ),
    _in("serve/reply.py", "notes[i] for i in index", "notes[0] for i in index", SERVER, "all beads get one's extras"),
    _in(
        "serve/server.py",
        "packed(evaluation, inverse,",
        "packed(evaluation, [sorted({*i}) for i in inverse],",
        SERVER,
        "i-PI's padding of a batch is not answered",
    ),
    _in(
        "serve/server.py",
        "place.setdefault(name, len(place))",
        "place.setdefault((name, len(place)), len(place))",
        SERVER,
        "copies in a batch are evaluated again",
    ),
    _in("serve/reply.py", "spread.energy / HARTREE", "spread.energy", SERVER, "the extras' spread is in eV"),
    _in(
        "ipi/wire.py", "(self.size, 2, 3, 3)[:, 0]", "(self.size, 2, 3, 3)[:, 1]", PROTOCOL, "the inverse cell is read"
    ),
    _in("ipi/wire.py", "result.virials.tobytes()", "(-result.virials).tobytes()", PROTOCOL, "virial: the sign"),
    _in(
        "ipi/wire.py",
        "pack_integer(len(extra))",
        "pack_integer(len(extra.decode()))",
        PROTOCOL,
        "extras' length counts letters, and i-PI hangs",
    ),
    _in("ipi/wire.py", "count < 1 or structures", "count < -1 or structures", PROTOCOL, "no atoms are believed"),
    _in(
        "ipi/protocol.py",
        "if not all(np.isfinite(values).all()",
        "if not all(np.isfinite(values).any()",
        PROTOCOL,
        "NaN leaves for i-PI, which integrates it",
    ),
    _in(
        "ipi/protocol.py",
        "(State.HAS_DATA, wire.GETFORCE): State.READY",
        "(State.HAS_DATA, wire.GETFORCE): State.HAS_DATA",
        PROTOCOL,
        "the conversation stops after its first answer",
    ),
    _in(
        "ipi/beads.py",
        "others.min() >= 4.0 * row[bead]",
        "others.min() >= row[bead]",
        "ipi/test_beads.py",
        "beads are named where nothing tells them apart",
    ),
    _in(
        "ipi/beads.py",
        "return flat.copy() if in_order and",
        "return flat.copy() if",
        "ipi/test_beads.py",
        "beads of several connections are named in any order",
    ),
    _in(
        "ipi/batching.py",
        "left if left > 0 else self._ring",
        "self._ring",
        "ipi/test_batching.py",
        "the rest of a step waits for connections that i-PI leaves idle",
    ),
    _in(
        "ipi/batching.py",
        "self._latest + self._window - now",
        "self._latest - now",
        "ipi/test_batching.py",
        "beads are evaluated one by one",
    ),
    _in(
        "ipi/steps.py",
        "kept = begins and self._one_result",
        "kept = False and self._one_result",
        "ipi/test_steps.py",
        "a Hessian is of two committees",
    ),
    _in(
        "ipi/transport.py",
        "if now - peer.taken_at > SEND_TIMEOUT_SECONDS",
        "if False",
        "ipi/test_transport.py",
        "a reply that nobody reads is waited for without end",
    ),
    _in(
        "ipi/peer_identity.py",
        "not in (os.geteuid(), 0)",
        "in ()",
        "ipi/test_transport.py",
        "positions go to another user who listens in /tmp",
    ),
    _in(
        "ipi/fd_keeper.py",
        "held.pop(name).close()",
        "pass",
        "ipi/test_fd_keeper.py",
        "it keeps what was released, and the next connection of that number is lost",
    ),
    _in(
        "ipi/fd_keeper.py",
        "self._send(sock, [])",
        "pass",
        "ipi/test_fd_keeper.py",
        "connections that were closed stay open in the helper process",
    ),
    _in(
        "ipi/fd_keeper.py",
        "while sock.recv(1 << 20):",
        "while False:",
        "ipi/test_fd_keeper.py",
        "a killed server resets its connections, and i-PI hangs",
    ),
    _in(
        "units.py",
        'unit_to_internal("energy", "electronvolt", 1.0)',
        "0.03674932540",
        SERVER,
        "other constants than i-PI's",
    ),
    # the sum, its spread, and what may not leave
    _in(
        "potential/potential.py",
        'check_finite("the sum of the models"',
        '(lambda *all: None)("the sum of the models"',
        POTENTIAL,
        "a NaN of the sum is not found before the reply is packed",
    ),
    _in(
        "potential/potential.py",
        'check_finite(f"the model',
        '(lambda *all: None)(f"the model',
        POTENTIAL,
        "a model's NaN is not that model's",
    ),
    _in(
        "potential/potential.py",
        "norm = 1.0 - float((w**2).sum())",
        "norm = 1.0",
        POTENTIAL,
        "the spread is that of a whole population",
    ),
    _in("potential/potential.py", "x *= self.energy_alpha", "x *= self.energy_alpha**2", POTENTIAL, "alpha twice"),
    _in(
        "potential/potential.py",
        "force_spread *= self.alpha / self.energy_alpha",
        "force_spread *= self.alpha",
        POTENTIAL,
        "both alphas in the force spread",
    ),
    _in("potential/potential.py", "/ (3 * norm)", "/ norm", POTENTIAL, "the force spread is sqrt(3) times too large"),
    _in(
        "potential/potential.py",
        "np.tensordot(w, force, axes=1)",
        "force.mean(axis=0)",
        POTENTIAL,
        "forces without weights",
    ),
    _in(
        "potential/potential.py",
        "reference + factor * (mean.energies - reference)",
        "factor * mean.energies",
        POTENTIAL,
        "the weighted baseline scales the reference energies too",
    ),
    _in(
        "potential/weighting.py",
        "return factor, -(x *",
        "return factor, (x *",
        WEIGHTING,
        "a force that is no derivative",
    ),
    _in(
        "potential/weighting.py",
        "self._slope = -6.0",
        "self._slope = -3.0",
        WEIGHTING,
        "the same, of the neighbourhoods",
    ),
    _in(
        "potential/evaluation.py",
        "baseline.virials + delta.virials",
        "baseline.virials - delta.virials",
        POTENTIAL,
        "the virial of a difference",
    ),
    _in(
        "potential/native.py",
        "0.5 * (found + found.transpose(0, 2, 1))",
        "found",
        LOOP,
        "a virial that is not symmetric",
    ),
    _in(
        "potential/torchscript.py",
        "        announce(card.path / MODEL)\n",
        "",
        "potential/test_first_run.py",
        "a stranger's program runs for the first time without a word",
    ),
    _in(
        "potential/torchscript.py",
        'node = out["node_energy"].double() + self._reference[given.numbers]',
        'node = (out["node_energy"] + self._reference[given.numbers].to(self._dtype)).double()',
        PACKED,
        "reference energies are added in float32",
    ),
    _in(
        "potential/torchscript.py",
        "given.batch, node)",
        "given.batch, node.to(self._dtype).double())",
        PACKED,
        "atoms' energies, references included, are rounded to float32",
    ),
    _in(
        "potential/graph.py",
        "self.lengths < cutoff",
        "self.lengths <= cutoff",
        CUTOFF,
        "a pair at the cutoff is a neighbour",
    ),
    _in("potential/pair_kernel.py", "square < limit", "square <= limit", CUTOFF, "the same, in the compiled loop"),
    _in("potential/graph.py", ">= MIN_DISTANCE:", ">= -1:", TOP, "atoms on top of each other are answered for"),
    _in("potential/graph.py", "> MAX_NEIGHBOURS:", "> 1e99:", CROWD, "a collapsed cell takes all memory"),
    _in("frame.py", "worst = np.abs(self.positions).max()", "worst = 0.0", BAD, "NaN positions are answered for"),
    _in(
        "potential/limits.py",
        "np.flatnonzero(near < least)",
        "np.flatnonzero(near < 0)",
        LIMITS,
        "no guard of distances",
    ),
    _in("potential/limits.py", "if 3 * max(", "if max(", LIMITS, "forces along a diagonal pass the guard"),
    _in(
        "potential/limits.py",
        "np.flatnonzero(far > self.spread)",
        "np.flatnonzero(far > 3 * self.spread)",
        LIMITS,
        "a guard three times too high",
    ),
    _in(
        "potential/evaluation.py",
        "np.maximum.reduce(members)",
        "np.minimum.reduce(members)",
        f"{NOVELTY}::test_whose_it_is",
        "what is new to one member is told of none",
    ),
    _in(
        "potential/novelty.py",
        "torch.clamp(-2 * log",
        "torch.clamp(-log",
        f"{NOVELTY}::test_one_gaussian_gives_the_mahalanobis_distance",
        "novelty is too small by sqrt(2)",
    ),
    _in(
        "potential/novelty.py",
        "torch.maximum(found, contacts)",
        "found",
        f"{NOVELTY}::test_contacts_need_no_model",
        "contacts that training never had are not new",
    ),
    # models from a disk
    _in("potential/bundle.py", "if got != expected:", "if False:", CARD, "a changed model is served"),
    _in(
        "potential/bundle.py",
        'Path(name).name != name or name == ".."',
        "False",
        CARD,
        "a card reads files outside of its bundle",
    ),
    _in(
        "potential/importer.py",
        'kind == "pickle" and not trust_pickle',
        "False",
        PICKLE,
        "a pickle runs code without being trusted",
    ),
    _in(
        "potential/native.py",
        "check_native(file)",
        "pass",
        "potential/test_native_file.py::test_the_engine_looks_first",
        "absurd sizes end in SIGSEGV",
    ),
    _in("serve/hot_swap.py", "if begins:", "if True:", SWAP, "a step is of two committees"),
    _in(
        "serve/hot_swap.py",
        "check_baseline(baseline, fresh.cards)",
        "pass",
        SWAP,
        "a Δ of another baseline is taken up",
    ),
    _in("serve/hot_swap.py", "> limits.spread:", "> 1e9:", SWAP, "a committee that ends the run is taken up"),
    _in(
        "serve/hot_swap.py",
        "wait([self._checking], EXIT_TIMEOUT_SECONDS)",
        "wait([self._checking])",
        SWAP,
        "an end waits for a disk that never answers",
    ),
    _in(
        "serve/hot_swap.py",
        "with suppress(MemoryError):",
        "if True:",
        SWAP,
        "no committee is looked at any more after a moment without memory",
    ),
    # the queue, and files
    _in("harvest/queue.py", '"BEGIN IMMEDIATE"', '"BEGIN"', QUEUE, "two writers read the same before they write"),
    _in(
        "harvest/queue.py",
        'db.connection.execute(f"PRAGMA busy_timeout',
        'db.connection.execute("PRAGMA synchronous=OFF"), db.connection.execute(f"PRAGMA busy_timeout',
        QUEUE,
        "a commit does not wait for the disk",
    ),
    _in("harvest/queue.py", "CREATE UNIQUE INDEX", "CREATE INDEX", QUEUE, "two servers keep one frame twice"),
    _in(
        "harvest/queue.py",
        " or row.worker != worker",
        "",
        QUEUE,
        "a label is taken from a worker whose claim another one has now",
    ),
    _in(
        "harvest/queue.py",
        '("expires", "<", now)',
        '("expires", ">", now)',
        QUEUE,
        "a claim is taken from who works on it",
    ),
    _in(
        "harvest/queue.py",
        "attempts=attempts - 1",
        "attempts=attempts",
        QUEUE,
        "a frame given back has lost an attempt",
    ),
    _in(
        "harvest/row.py",
        "if stored is not None and stored !=",
        "if stored is None and stored !=",
        QUEUE,
        "changed bytes are read as positions",
    ),
    _in(
        "harvest/row.py",
        "if stored is None and fingerprint(",
        "if False and fingerprint(",
        QUEUE,
        "the same, in rows of an older beadwork",
    ),
    _in(
        "harvest/writer.py",
        "except Exception as error:",
        "except (QueueError, OSError) as error:",
        "harvest/test_writer.py",
        "the writer's thread dies of a fault, and nobody hears",
    ),
    _in(
        "harvest/writer.py",
        "self._complete(batch, self._queue.add_all(batch))",
        "self._complete(batch, [1] * len(batch)), self._queue.add_all(batch)",
        "harvest/test_writer.py",
        "frames are reported before they are stored",
    ),
    _in("harvest/select.py", "(force_spread >= high)", "(force_spread > 9 * high)", SELECT, "exploded frames are kept"),
    _in(
        "harvest/select.py",
        "moment.step - last.step < self.cooldown",
        "moment.step - last.step <= self.cooldown",
        SELECT,
        "a cool-down that is a step too long",
    ),
    _in(
        "harvest/select.py",
        "< self.min_distance for known",
        "< 0 for known",
        SELECT,
        "one frame is kept again and again",
    ),
    _in(
        "harvest/keeper.py",
        "and row.status != LABELLED",
        "",
        "harvest/test_keeper.py",
        "labelled frames use up the limit of a run",
    ),
    _in("disk.py", "os.fsync(stream.fileno())", "pass", "test_disk.py", "a file of nothing after a power failure"),
    _in(
        "disk.py",
        "os.replace(part, file)",
        "file.write_text(part.read_text())",
        "test_disk.py",
        "a killed writer leaves half a file",
    ),
    _in(
        "disk.py",
        "return not regular or",
        "return False and",
        "harvest/test_listing.py",
        "/dev/stdout is replaced by a file",
    ),
    _in(
        "processes.py",
        'return [python, "-P", "-m", name]',
        'return [python, "-m", name]',
        "test_processes.py",
        "ase.py of the working folder is run",
    ),
    _in(
        "label/user_frames.py",
        "do_not_split_by_at_sign=True",
        "do_not_split_by_at_sign=False",
        "label/test_user_frames.py::test_a_name_with_an_at_sign_is_a_name",
        "another file is read than the one named",
    ),
    _in(
        "report/sections.py",
        "{escape(found.text)}",
        "{found.text}",
        "report/test_write.py",
        "a string of the folder is markup",
    ),
    _in(
        "report/html.py",
        "'sha256-{_digest(script)}'",
        "'unsafe-inline'",
        "report/test_write.py",
        "the page runs any script",
    ),
    # learning
    _in(
        "train/split.py",
        "if apart == 0:",
        "if True:",
        SPLIT,
        "frames are held out one by one, beside those learned from",
    ),
    _in(
        "train/split.py",
        "abs(step - one.step) < apart",
        "abs(step - one.step) < 0",
        SPLIT,
        "borders of what is held out are tested",
    ),
    _in(
        "train/dataset.py",
        "forces = e.label.forces - result",
        "forces = answer",
        "train/test_dataset.py",
        "the baseline's forces are learned for the difference",
    ),
    _in(
        "train/dataset.py",
        "energy=e.label.energy - float(energy)",
        "energy=float(energy) - e.label.energy",
        "train/test_dataset.py",
        "Δ has the wrong sign",
    ),
    _in(
        "train/calibration.py",
        "residuals(dataset.testing",
        "residuals(dataset.training",
        "train/test_committee.py",
        "alpha is calibrated on frames that were learned from",
    ),
    _in(
        "train/calibration.py",
        "rest = errors.take(test)",
        "rest = errors.take(fit)",
        "train/test_validate.py",
        "alpha is tested on the frames that it was fitted on",
    ),
    _in(
        "train/calibration.py",
        " - (self.noise**2).mean())",
        ")",
        "train/test_validate.py",
        "labels' noise is taken for the models' error",
    ),
    # observables, heads on one trunk, composite labels, frames that are lost
    _in(
        "report/uncertainty.py",
        "longer * np.sqrt(squares",
        "np.sqrt(squares",
        "report/test_uncertainty.py",
        "slow motion makes the error bar of a short run too small",
    ),
    _in(
        "report/uncertainty.py",
        "np.sqrt(len(one)) * one.mean(axis=0)",
        "np.sqrt(len(parts[0]) / len(cut)) * one.mean(axis=0)",
        "report/test_uncertainty.py",
        "blocks of pieces of several lengths count as if all were of one",
    ),
    _in(
        "analyse/free_energy.py",
        "visited = seen.sum(axis=0) >= SEVERAL",
        "visited = p > 0",
        "analyse/test_free_energy.py",
        "one excursion of a run has a free energy",
    ),
    _in(
        "report/uncertainty.py",
        "np.hypot(self.statistical, committee)",
        "np.maximum(self.statistical, committee)",
        "analyse/test_free_energy.py",
        "the error of both is the larger one alone",
    ),
    _in(
        "analyse/free_energy.py",
        "energy = -kt * np.log(p / (edges[1] - edges[0]))",
        "energy = kt * np.log(p / (edges[1] - edges[0]))",
        "analyse/test_free_energy.py",
        "barriers of a free energy are wells",
    ),
    _in(
        "analyse/free_energy.py",
        "np.hstack([one, -one])",
        "np.hstack([one, one])",
        "analyse/test_free_energy.py",
        "a symmetric coordinate is not made symmetric",
    ),
    _in(
        "analyse/free_energy.py",
        "np.exp(-(depth - depth.min()) / kt)",
        "np.exp(-(depth - depth.min()))",
        "analyse/test_free_energy.py",
        "a grid of elsewhere is integrated at another temperature",
    ),
    _in(
        "analyse/series.py",
        ">= 1000 * skip - 1e-9]",
        ">= skip - 1e-9]",
        "analyse/test_series.py",
        "--skip of a series is in fs",
    ),
    _in(
        "analyse/series.py",
        "(np.diff(known[:, 0]) > 0).all()",
        "True",
        "analyse/test_series.py",
        "a series of damaged steps is averaged",
    ),
    _in(
        "analyse/runs.py",
        "apart -= np.round(apart @ np.linalg.inv(frame.cell)) @ frame.cell",
        "pass",
        "analyse/test_runs.py",
        "the centroid of beads across a face of the cell is in its middle",
    ),
    _in(
        "analyse/runs.py",
        "[potentials.by_step.get(int(step)) for step in steps]",
        "[*potentials.by_step.values()][: len(steps)]",
        "analyse/test_runs.py",
        "the members' energies are those of other steps",
    ),
    _in(
        "analyse/properties.py",
        "series.values**2 - prime",
        "series.values**2",
        "analyse/test_properties.py",
        "the heat capacity lacks a term",
    ),
    _in(
        "analyse/spectrum.py",
        "4 * of_time * 3 * len(names) / kinetic",
        "2 * of_time * 3 * len(names) / kinetic",
        "analyse/test_spectrum.py",
        "a density of states of half of the modes",
    ),
    _in(
        "analyse/coordinate.py",
        "space.distances(one, proton) - space.distances(other, proton)",
        "space.distances(other, proton) - space.distances(one, proton)",
        "analyse/test_coordinate.py",
        "the sign of a proton's transfer",
    ),
    _in(
        "potential/heads.py",
        "(wide - wide.mean(axis=0))",
        "wide",
        "potential/test_heads.py::test_one_evaluation_is_the_mean_of_separate_ones",
        "the heads' energies are not about their mean",
    ),
    _in(
        "potential/heads.py",
        "wide[head] = self.out[head]",
        "wide[:] = self.out",
        "potential/test_heads.py::test_a_head_alone_and_the_mean_of_heads",
        "every head's forces have those of all in them",
    ),
    _in(
        "potential/heads.py",
        "fits = fits and found.out.shape == (m, hidden) and found.elements == elements and m > 1",
        "fits = fits and m > 1",
        "potential/test_heads.py::test_heads_that_do_not_fit_their_model_are_refused",
        "the heads of another model are taken",
    ),
    _in(
        "potential/novelty.py",
        "and m.height.shape == (len(m.shift),)",
        "and True",
        "potential/test_novelty.py::test_damaged_file_is_refused",
        "novelty of shapes that do not go together",
    ),
    _in(
        "label/codes/scheme.py",
        "weights.get(level, 0.0) + sign * weight",
        "weights.get(level, 0.0) + weight",
        "label/codes/test_scheme.py::test_the_brackets_of_a_scheme_are_its_differences",
        "a composite label adds what it was to subtract",
    ),
    _in(
        "label/codes/scheme.py",
        "math.exp(-ALPHA * (y - x))",
        "math.exp(-ALPHA * y)",
        "label/codes/test_scheme.py::test_extrapolation_is_helgaker_s",
        "Hartree-Fock is extrapolated by another law",
    ),
    _in(
        "harvest/keeper.py",
        "self.writer.dropped + (0 if stored else self.writer.pending)",
        "self.writer.dropped",
        "harvest/test_keeper.py",
        "frames that were not stored at the end are lost without a word in summary.json",
    ),
    _in(
        "observe/status.py",
        "self._write()  # at once, even",
        "pass  # at once, even",
        "observe/test_status.py",
        "what a killed server held in memory is known to nobody",
    ),
    # the house
    Mutant("Makefile", "\ndemo: ", "\ndemos: ", "test_readme.py", "make demo does nothing"),
)
