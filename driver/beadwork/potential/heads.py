"""M heads on one trunk: a committee for the price of one model.

The heads are the readouts of one MACE of two layers that was trained with several heads (mace's own), and everything
before the readouts is common to them. So their mean is one model, exactly: the first readout is linear, and averages;
the hidden neurons of the second stand side by side, their output weights divided by M. A bundle holds that model, and
`heads.npz` beside it has what makes each head's energy from the mean model's features (`novelty.read_features`), which
costs nothing. A head's forces need its own readouts in the mean model's place, and a whole evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beadwork.errors import ModelError
from beadwork.frame import FloatArray, IntArray
from beadwork.potential.novelty import read_features

#: the names of a MACE module's parameters that heads have of their own, but for energies of atoms and their scale
READOUT = "readouts.0.linear.weight"
HIDDEN = "readouts.1.linear_1.weight"
OUT = "readouts.1.linear_2.weight"
UP = "interactions.1.linear_up.weight"
ENERGIES = "atomic_energies_fn.atomic_energies"
SCALE, SHIFT = "scale_shift.scale", "scale_shift.shift"
#: of the native model that is the mean of the heads; head m is called str(m)
MEAN = "mean"


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """The readouts of M heads, on C features of each layer, with H hidden neurons each, for n elements.

    reference: (M, n) eV, what an atom adds to a head's energy whatever its environment. first: (M, C) eV, on the
    features of the first layer. hidden: (M, H, C), on those of the second; out: (M, H) eV, on silu(hidden) times gate.
    """

    elements: tuple[int, ...]
    reference: FloatArray
    first: FloatArray
    hidden: FloatArray
    out: FloatArray
    gate: float
    _there: dict[torch.device, list[torch.Tensor]] = field(default_factory=dict, repr=False)  # brought once

    def __len__(self) -> int:
        return len(self.first)

    def deviations(self, features: torch.Tensor, numbers: IntArray) -> torch.Tensor:
        """(M, A) eV: each head's energy of each atom minus the heads' mean; float64, on the features' device.

        features: (A, 2 C), as `novelty.read_features` has them. numbers: (A,) atomic numbers.
        """
        device = features.device
        if device not in self._there:
            m, hidden, channels = self.hidden.shape
            # centred once: what all heads have in common is many times what they differ by
            wide = np.zeros((m, m, hidden))
            # a block for each head: its own neurons have its output weights, all others 0
            wide[np.arange(m), np.arange(m)] = self.gate * self.out
            arrays = (
                self.hidden.reshape(m * hidden, channels).T,
                (wide - wide.mean(axis=0)).reshape(m, m * hidden).T,
                (self.first - self.first.mean(axis=0)).T,
                self.reference - self.reference.mean(axis=0),
            )
            self._there[device] = [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]
        hidden, out, first, reference = self._there[device]
        c = len(first)
        # elements are in ascending order, as their reference energies
        which = torch.from_numpy(np.searchsorted(self.elements, numbers)).to(device)
        found = torch.nn.functional.silu(features[:, c:].double() @ hidden) @ out + features[:, :c].double() @ first
        return found.T + reference[:, which]

    def put(self, state: Mapping[str, torch.Tensor], head: int) -> dict[str, torch.Tensor]:
        """Of the mean model's parameters those that make it this head; `state` is the mean model's."""
        up, scale = _up(state), state[SCALE].double()
        wide = np.zeros(self.out.size).reshape(self.out.shape)
        wide[head] = self.out[head]
        c = self.first.shape[1]
        new = {
            # e3nn divides by the root of the number of inputs, and the model multiplies by its scale
            READOUT: up @ torch.from_numpy(self.first[head]) * c**0.5 / scale,
            OUT: torch.from_numpy(wide).flatten() * wide.size**0.5 / scale,
            ENERGIES: torch.from_numpy(self.reference[head]) - state[SHIFT].double(),
        }
        return {key: value.to(state[key].dtype).reshape(state[key].shape) for key, value in new.items()}

    def apart(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The parameters of the mean model as those of a MACE with all heads; `state` is the mean model's."""
        up, scale, shift = _up(state), state[SCALE].double().reshape(()), state[SHIFT].double().reshape(())
        m, c = self.first.shape
        blocks = torch.zeros((m, self.out.shape[1], m), dtype=torch.float64)
        blocks[torch.arange(m), :, torch.arange(m)] = torch.from_numpy(self.out) * self.out.size**0.5 / scale
        new = {
            READOUT: up @ torch.from_numpy(self.first.T) * c**0.5 / scale,
            OUT: blocks,
            ENERGIES: torch.from_numpy(self.reference) - shift,
            SCALE: scale.expand(m),
            SHIFT: shift.expand(m),
        }
        # e3nn marks which outputs there are, all of them
        new |= {key.replace("weight", "output_mask"): torch.ones(m) for key in (READOUT, OUT)}
        linear = (READOUT, OUT)
        return dict(state) | {
            key: (value.flatten() if key in linear else value).to(state[key].dtype) for key, value in new.items()
        }

    def native(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The `prediction_heads` of a native model whose single head is the mean: MEAN, and '0', '1', … for each."""
        keys = ["atomic_energies", "readout_1_weights", "readout_2_weights_1", "readout_2_weights_2"]
        keys += ["zbl_c"] if data["has_zbl"] else []
        # a native model may have been extracted for some of the elements
        known = [self.elements.index(z) for z in data["atomic_numbers"]]
        parameters = {MEAN: {key: data[key] for key in keys}}
        for m in range(len(self)):
            wide = np.zeros(self.out.shape)
            wide[m] = self.out[m]
            parameters[str(m)] = parameters[MEAN] | {
                "atomic_energies": self.reference[m, known].tolist(),
                "readout_1_weights": self.first[m].tolist(),
                "readout_2_weights_2": wide.ravel().tolist(),
            }
        return {"schema_version": 1, "names": list(parameters), "default": MEAN, "parameters": parameters}

    def save(self, file: Path) -> None:
        """Write it as .npz."""
        np.savez(
            file,
            elements=np.array(self.elements),
            reference=self.reference,
            first=self.first,
            hidden=self.hidden,
            out=self.out,
            gate=np.array(self.gate),
        )


def load_heads(file: Path, elements: tuple[int, ...]) -> Heads:
    """Read what `Heads.save` wrote, for a model of these elements. Raises ModelError for anything else."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as data:  # NumPy leaves a torn file open
            reference, first, hidden, out = (
                np.asarray(data[key], dtype=np.float64) for key in ("reference", "first", "hidden", "out")
            )
            known = tuple(int(z) for z in data["elements"])
            found = Heads(known, reference, first, hidden, out, float(data["gate"]))
        m, hidden, channels = found.hidden.shape
        fits = found.reference.shape == (m, len(elements)) and found.first.shape == (m, channels)
        fits = fits and found.out.shape == (m, hidden) and found.elements == elements and m > 1
        finite = all(np.isfinite(x).all() for x in (found.reference, found.first, found.hidden, found.out, found.gate))
    except Exception as error:  # numpy's readers raise whatever they meet
        raise ModelError(
            f"{file} cannot be read ({type(error).__name__}: {error})", "import the model again"
        ) from error
    if not fits or not finite:
        raise ModelError(f"{file} has arrays of shapes or values that do not go together", "import the model again")
    return found


def said(head: int | None) -> str:
    """Which head of a committee on one trunk an engine is, for its name."""
    return "" if head is None else f", head {head}"


def join(model: Any) -> tuple[Any, Heads]:
    """The mean of an eager MACE's heads as an eager MACE of one head, and the heads; both in float64.

    Raises ModelError for a model whose heads are not readouts of one trunk of two layers. mace must be imported.
    """
    from e3nn import o3
    from mace.tools.scripts_utils import extract_config_mace_model

    # sums and quotients of weights in float64: the mean of the heads is to be exact
    model = model.double().cpu().eval()
    state = {key: value.detach() for key, value in model.state_dict().items()}
    m = len(getattr(model, "heads", None) or ["Default"])
    _check_heads(model, state, m)
    channels = _up(state).shape[0]
    scale = state[SCALE].expand(m) if state[SCALE].numel() == 1 else state[SCALE]
    shift = state[SHIFT].expand(m) if state[SHIFT].numel() == 1 else state[SHIFT]
    # the repulsion is scaled with the rest, so its mean over such heads is no head's
    if hasattr(model, "pair_repulsion_fn") and scale.unique().numel() > 1:
        raise ModelError("its heads scale a repulsion of atoms by different factors, so they have no common trunk")
    first = state[READOUT].view(channels, m) * scale
    neurons = state[HIDDEN].numel() // channels // m
    # mace has output weights from every head's neurons to every head, and uses those of its own alone
    blocks = state[OUT].view(m, neurons, m)
    out = torch.stack([blocks[k, :, k] for k in range(m)]) * scale[:, None]
    heads = Heads(
        tuple(int(z) for z in model.atomic_numbers),
        (torch.atleast_2d(state[ENERGIES]).expand(m, -1) + shift[:, None]).numpy(),
        # e3nn divides by the root of the number of inputs
        torch.linalg.solve(_up(state), first / channels**0.5).T.contiguous().numpy(),
        (state[HIDDEN].view(channels, m, neurons).permute(1, 2, 0) / channels**0.5).contiguous().numpy(),
        (out / (m * neurons) ** 0.5).numpy(),
        float(model.readouts[1].non_linearity.acts[0].cst),
    )
    config = extract_config_mace_model(model)
    config |= {
        "heads": ["Default"],
        "MLP_irreps": o3.Irreps(f"{m * neurons}x0e"),
        "atomic_energies": torch.atleast_2d(state[ENERGIES]).mean(dim=0).numpy(),
        "atomic_inter_scale": float(scale.mean()),
        "atomic_inter_shift": float(shift.mean()),
    }
    mean = type(model)(**config)
    own = mean.state_dict()
    # everything before the readouts is common, and has the same shape
    taken = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    taken |= {
        READOUT: (first.mean(dim=1) / scale.mean()).reshape(own[READOUT].shape),
        OUT: (out / m / scale.mean()).reshape(own[OUT].shape),
        SCALE: own[SCALE],
        SHIFT: own[SHIFT],
        ENERGIES: own[ENERGIES],
    }
    mean.load_state_dict(own | taken)
    return mean.double().eval(), heads


def _check_heads(model: Any, state: Mapping[str, torch.Tensor], m: int) -> None:
    """Raise ModelError where these are no heads of a MACE with two readouts as mace-torch 0.3 names them."""
    lacking = [key for key in (READOUT, HIDDEN, OUT, UP, ENERGIES, SCALE, SHIFT) if key not in state]
    if m < 2:
        raise ModelError("it has one head, and a committee on one trunk needs at least two")
    if type(model).__name__ != "ScaleShiftMACE" or len(model.readouts) != 2 or lacking:
        raise ModelError(
            "a committee on one trunk is a ScaleShiftMACE of two layers, and this is "
            + (f"one without {', '.join(lacking)}" if lacking else f"a {type(model).__name__} of {len(model.readouts)}")
        )
    gate = model.readouts[1].non_linearity.acts[0].f
    if gate not in (torch.nn.functional.silu, torch.nn.SiLU):
        raise ModelError("its readouts have another gate than silu, which beadwork does not know")


def _up(state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(C, C): what takes the first layer's scalars to the features of `novelty.read_features`."""
    matrix = read_features(state)[0][1]
    if matrix is None:
        raise ModelError("its second layer does not receive the scalars of its first as beadwork knows it")
    return matrix
