"""One training run of MACE, in a process of its own: `python -m beadwork.train.mace_run [--start BUNDLE] -- OPTIONS`.

It is mace_run_train with three additions. It ends when its parent is gone, so that a killed run leaves nothing behind
that trains on. With --start it takes the weights of a bundle, but for the reference energies: mace's own
--foundation_model wants a pickle and rescales the model, and --restart_latest would go on with the old optimiser. And
with several heads the best epoch is the one that suits all of them: mace itself looks at the last one's frames alone.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from beadwork.potential.bundle import HEADS, check
from beadwork.potential.eager import load_model
from beadwork.potential.heads import load_heads

#: the one buffer that a run from a start model does not take over
REFERENCE = "atomic_energies_fn.atomic_energies"


def main(arguments: list[str]) -> None:
    """Run mace_run_train with the options after `--`."""
    cut = arguments.index("--")
    ours, theirs = arguments[:cut], arguments[cut + 1 :]
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    from mace.cli import run_train

    train, configure = run_train.tools.train, run_train.configure_model
    start = load_model(check(ours[1])) if ours else None

    def trained(*args: Any, valid_loaders: dict[str, Any], **kwargs: Any) -> Any:
        return train(*args, valid_loaders=_together(valid_loaders), **kwargs)

    def configured(options: Any, loader: Any, energies: Any, foundation: Any, heads: Any, *rest: Any) -> Any:
        if len(heads) > 1:
            options.mean = [options.mean] * len(heads)  # mace takes one scale for all heads, but not one shift
        model, outputs = configure(options, loader, energies, foundation, heads, *rest)
        if start is not None:
            model.load_state_dict({**_weights(start, Path(ours[1])), REFERENCE: model.state_dict()[REFERENCE]})
            # no weight, but it scales the messages; mace takes it anew from each set of frames
            for block, old in zip(model.interactions, start.interactions.children(), strict=True):
                block.avg_num_neighbors = old.avg_num_neighbors
        return model, outputs

    run_train.tools.train, run_train.configure_model = trained, configured
    sys.argv = ["mace_run_train", *theirs]
    run_train.main()


def _weights(start: Any, bundle: Path) -> dict[str, Any]:
    """The parameters of a model, or, where it is the mean of heads on one trunk, those of a model with all heads."""
    heads, weights = bundle / HEADS, start.state_dict()
    if not heads.exists():
        return dict(weights)
    return load_heads(heads, tuple(int(z) for z in start.atomic_numbers)).apart(weights)


def _together(loaders: dict[str, Any]) -> dict[str, Any]:
    """The frames of all heads in one loader; each knows its head."""
    if len(loaders) == 1:
        return loaders
    from mace.tools.torch_geometric.dataloader import DataLoader

    batch = next(iter(loaders.values())).batch_size
    frames = torch.utils.data.ConcatDataset([loader.dataset for loader in loaders.values()])
    return {"all heads": DataLoader(frames, batch_size=batch, shuffle=False, drop_last=False)}


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
