"""Reading TOML, on every Python."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from beadwork.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["read", "tomllib"]


def read(path: Path) -> dict[str, Any]:
    """Read a file. Raises ConfigError for one that is not there, or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
