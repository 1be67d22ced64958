"""One training run of MACE, in a process of its own: `python -m beadwork.train.mace_run [--start MODEL] -- OPTIONS`.

It is mace_run_train with two additions. It ends when its parent is gone, so that a killed run leaves nothing behind
that trains on. And with --start it takes the weights of a TorchScript model, but for the reference energies: mace's
own --foundation_model wants a pickle and rescales the model, and --restart_latest would go on with the old optimiser.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import torch

#: the one buffer that a run from a start model does not take over
REFERENCE = "atomic_energies_fn.atomic_energies"


def main(arguments: list[str]) -> None:
    """Run mace_run_train with the options after `--`."""
    cut = arguments.index("--")
    ours, theirs = arguments[:cut], arguments[cut + 1 :]
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    from mace.cli import run_train

    if ours:
        start = torch.jit.load(ours[1], map_location="cpu")
        weights = start.state_dict()
        configure = run_train.configure_model

        def configured(*args: Any, **kwargs: Any) -> Any:
            model, outputs = configure(*args, **kwargs)
            model.load_state_dict({**weights, REFERENCE: model.state_dict()[REFERENCE]})
            # no weight, but it scales the messages; mace takes it anew from each set of frames
            for block, old in zip(model.interactions, start.interactions.children(), strict=True):
                block.avg_num_neighbors = old.avg_num_neighbors
            return model, outputs

        run_train.configure_model = configured
    sys.argv = ["mace_run_train", *theirs]
    run_train.main()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
