from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from beadwork.errors import ModelError
from beadwork.harvest.queue import Queue
from beadwork.harvest.row import KeptFrame
from beadwork.label.choose import choose, from_queue
from beadwork.potential.architecture import mace_imported
from beadwork.potential.bundle import check
from beadwork.potential.features import features
from support import truth


@pytest.fixture(scope="module")
def pool():
    """A redundant pool, as a simulation makes it: 36 waters and dimers, and four protonated ones at its end."""
    common = truth.clusters(36, 1, most=2)
    rare = [f for f in truth.clusters(12, 2, most=3, charged=True) if (f.numbers == 1).sum() % 2]
    return common + rare[:4]


def test_features_are_mace_s_own_scalars(pool):
    """The invariant columns are those that mace itself extracts from the eager model's node features; the first layer's
    are then taken through the second's `linear_up`, as compiled kernels have them."""
    import torch

    vectors, numbers, owner = features(pool[:3], check(truth.BASELINE))
    assert len(vectors) == len(numbers) == len(owner) == sum(len(f.numbers) for f in pool[:3])
    assert vectors.shape[1] == 2 * 24  # two layers of 24 channels
    with mace_imported():
        from mace.data import AtomicData, config_from_atoms
        from mace.tools import torch_geometric, utils

        module = torch.jit.load(str(truth.BASELINE / "model.pt")).double()
        table = utils.AtomicNumberTable([1, 8])
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            data = AtomicData.from_config(config_from_atoms(pool[2].to_atoms()), z_table=table, cutoff=4.5)
            batch = next(iter(torch_geometric.dataloader.DataLoader([data], batch_size=1)))
            theirs = module(batch.to_dict(), training=False, compute_force=False)["node_feats"].detach().numpy()
        finally:
            torch.set_default_dtype(before)
    up = module.state_dict()["interactions.1.linear_up.weight"].numpy().reshape(24, 24) / 24**0.5
    assert np.allclose(vectors[owner == 2], np.hstack((theirs[:, :24] @ up, theirs[:, 24:])), atol=1e-6)


def test_features_do_not_change_when_a_frame_is_turned(pool):
    """Scalars are scalars: the columns are the right ones."""
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    turned = replace(pool[5], positions=pool[5].positions @ turn + 3.0)
    one, _, _ = features([pool[5]], check(truth.BASELINE))
    two, _, _ = features([turned], check(truth.BASELINE))
    assert np.allclose(one, two, atol=1e-9)
    assert np.abs(one - features([pool[3]], check(truth.BASELINE))[0][: len(one)]).max() > 1e-3


def test_the_rare_are_taken_first(pool):
    """Four protonated clusters among forty: a choice of eight holds most of them; a random one holds 0.8."""
    labelled = truth.clusters(6, 8, most=2)
    choice = choose(pool, None, labelled, truth.BASELINE, 8)
    assert len(set(choice.order)) == 8
    assert sum(n >= 36 for n in choice.order) >= 3
    assert choice.after < choice.random < choice.before
    assert choice.frames_random is None or choice.frames_random > 8
    assert "8 frames chosen" in str(choice)


def test_a_large_spread_goes_before_a_rare_structure(pool):
    """A frame of usual structure whose spread is large is taken before a rare one whose spread is nothing."""
    spreads = [np.full(len(f.numbers), 1e-4 if n >= 36 else 0.1) for n, f in enumerate(pool)]
    spreads[7][:] = 50.0
    choice = choose(pool, spreads, truth.clusters(6, 8, most=2), truth.BASELINE, 3)
    assert choice.order[0] == 7
    assert not any(n >= 36 for n in choice.order)


def test_of_a_new_atom_the_spread_says_nothing(pool):
    """The members agree on protonated clusters, for none of them knows any: by spread alone these come last, and as new
    as they are they come first. What is within the edge of training stays with its spread; unknown is not new."""
    spreads = [np.full(len(f.numbers), 1e-4 if n >= 36 else 0.1) for n, f in enumerate(pool)]
    known = truth.clusters(6, 8, most=2)
    novelty = [np.full(len(f.numbers), 3.0 if n >= 36 else 0.9) for n, f in enumerate(pool)]
    last = choose(pool, spreads, known, truth.BASELINE, 36).order
    assert not any(n >= 36 for n in last)
    first = choose(pool, spreads, known, truth.BASELINE, 8, novelty=novelty).order
    assert sum(n >= 36 for n in first) >= 3
    for within in ([None] * len(pool), [np.ones(len(f.numbers)) for f in pool]):
        assert choose(pool, spreads, known, truth.BASELINE, 36, novelty=within).order == last


@pytest.mark.parametrize(("whose", "wanted"), [("both", True), ("baseline", True), ("delta", False)])
def test_whose_novelty_weighs(pool, tmp_path, whose, wanted):
    """From the queue: where labels for Δ are chosen, what is new to the baseline alone keeps the weight of its spread;
    and a frame that the user has brought, of which nothing is known, is neither first nor last for that."""
    queue = Queue(tmp_path / "q.db", create=True)
    for n, frame in enumerate(pool):
        new = n >= 36
        size = len(frame.numbers)
        spread = np.full(size, np.nan if n == 0 else 1e-4 if new else 0.1)
        of = {} if n == 0 else {"baseline": np.full(size, 3.0 if new else 0.5), "delta": np.full(size, 0.5)}
        models = () if n == 0 else ("a" * 64,)
        queue.add(KeptFrame(frame, n, 0.01, spread, np.ones(2), models, "c" * 64, step=n, novelty=of))
    rows, choice = from_queue(queue, queue.rows(), truth.BASELINE, 8, whose=whose)
    assert choice is not None
    assert len(rows) == 8
    assert any(row > 36 for row in rows) == wanted


def test_only_what_a_label_would_hold_counts(pool):
    """Where clusters are cut out, an atom outside of its frame's cluster makes no frame wanted, and is not covered."""
    spreads = [np.full(len(f.numbers), 0.1) for f in pool]
    whole = next(n for n, f in enumerate(pool) if len(f.numbers) >= 6)
    spreads[whole][-1] = 50.0
    known = truth.clusters(6, 8, most=2)
    assert choose(pool, spreads, known, truth.BASELINE, 1).order == (whole,)
    parts = [tuple(range(len(f.numbers) - 3)) or None for f in pool]
    cut = choose(pool, spreads, known, truth.BASELINE, 1, parts)
    assert cut.order != (whole,)
    assert cut.before != choose(pool, spreads, known, truth.BASELINE, 1).before


def test_what_is_labelled_is_not_new(pool):
    """A frame that is labelled already is the last to be taken; with nothing labelled something is taken too."""
    choice = choose(pool, None, pool[:-1], truth.BASELINE, 1)
    assert choice.order == (len(pool) - 1,)
    assert choice.after == pytest.approx(0, abs=1e-6)
    first = choose(pool, None, [], truth.BASELINE, 3)
    assert len(first.order) == 3
    assert np.isfinite([first.before, first.after, first.random]).all()


def test_all_and_none(pool):
    """More wanted than there are, or none at all."""
    choice = choose(pool[:3], None, [], truth.BASELINE, 10)
    assert sorted(choice.order) == [0, 1, 2]
    assert choice.after == pytest.approx(0, abs=1e-6)
    assert choose([], None, pool, truth.BASELINE, 3).order == ()


def test_an_element_that_the_model_lacks_is_named(pool):
    """An element that the model lacks is named."""
    numbers = pool[0].numbers.copy()
    numbers[0] = 3
    with pytest.raises(ModelError, match=r"numbers \[3\]"):
        choose([replace(pool[0], numbers=numbers)], None, [], truth.BASELINE, 1)
