"""Python packages that a part of beadwork needs and a machine may lack: what to type for them."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires


def pip_install(*names: str) -> str:
    """Return the command that installs these packages, in the versions that this beadwork declares.

    Not `pip install beadwork[extra]`: beadwork itself may have come from a wheel, and be on no index.
    """
    try:
        declared = requires("beadwork") or []
    except PackageNotFoundError:  # run from its source
        declared = []
    wanted = {}
    for requirement in declared:
        if match := re.match(r"([\w.-]+)\s*([^;\[]*)", requirement):
            wanted[match[1].lower()] = f"{match[1]}{match[2].strip()}"
    words = [wanted.get(name, name) for name in names]
    return " ".join(("pip install", *(f"'{word}'" if re.search(r"[<>!~*]", word) else word for word in words)))
