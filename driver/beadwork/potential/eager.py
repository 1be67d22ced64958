"""The engine for every architecture: mace-torch's own modules, made again from a bundle's weights and arguments."""

from __future__ import annotations

from typing import Any

from beadwork.errors import ModelError
from beadwork.potential.architecture import rebuild
from beadwork.potential.bundle import WEIGHTS, Card, Checked
from beadwork.potential.torchscript import ModuleEngine, NoTorchScriptError, TorchScriptEngine
from beadwork.potential.weights import read_weights


class EagerEngine(ModuleEngine):
    """A bundle's model.safetensors. Needs mace-torch, and no TorchScript."""

    kind = "eager"

    @staticmethod
    def open_module(card: Card, device: str) -> Any:
        """As `ModuleEngine` has it."""
        return load_weights(card)


def load_weights(card: Card) -> Any:
    """The eager module of a bundle that has weights. Raises ModelError."""
    state, description = read_weights(card.path / WEIGHTS)
    try:
        return rebuild(description, state)
    except ModelError as error:
        raise ModelError(f"{card.path / WEIGHTS}: {error.what}", error.remedy or "import the model again") from error


def open_exact(card: Checked, dtype: str = "float64", device: str = "cpu") -> ModuleEngine:
    """The engine that others are held against: torchscript where the bundle has it and PyTorch reads it, else eager.

    Raises ModelError.
    """
    if card.without("eager"):
        return TorchScriptEngine(card, dtype, device)
    if not card.without("torchscript"):
        try:
            return TorchScriptEngine(card, dtype, device)
        except NoTorchScriptError:
            pass
    return EagerEngine(card, dtype, device)


def load_model(card: Checked) -> Any:
    """A bundle's module, to read its weights. Raises ModelError."""
    return TorchScriptEngine.open_module(card, "cpu") if card.without("eager") else load_weights(card)
