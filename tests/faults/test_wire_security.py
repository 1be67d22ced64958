"""What docs/security.md says, held: who is connected to, what is run, and whose the files are. The rest is held beside
what it is about: the queue's permissions, the metrics' address, the sizes that a peer may announce."""

from __future__ import annotations

import ast
import os
import pickle
import random
import subprocess
import sys
import textwrap
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import beadwork
from beadwork.errors import ModelError
from beadwork.potential.bundle import check, write_card
from beadwork.potential.native import kernel_cache

PACKAGE = Path(beadwork.__file__).parent
#: serves an i-PI over inet with everything that beadwork has, and prints every address that was connected to or bound
AUDITED = textwrap.dedent(
    """
    import sys
    seen = set()
    def hook(event, arguments):
        if event in ("socket.connect", "socket.bind", "socket.sendto"):
            seen.add(f"{event} {arguments[1]}")
    sys.addaudithook(hook)
    from beadwork.cli import main
    code = main(sys.argv[1:])
    print("AUDIT", code, sorted(seen))
    """
)


class Payload:
    """Unpickling this makes a folder: harmless, and easy to see."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._path),)


def _evil(file: Path, how: str, proof: Path) -> None:
    """A file called model.pt that holds a pickle with a payload."""
    import torch

    if how == "pickle":
        file.write_bytes(pickle.dumps(Payload(proof)))
    elif how == "torch.save":
        torch.save(Payload(proof), file)
    else:  # real TorchScript, whose own pickle has been exchanged
        whole = file.with_name("whole.pt")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), whole)
        with zipfile.ZipFile(whole) as real, zipfile.ZipFile(file, "w") as fake:
            for item in real.infolist():
                evil = item.filename.endswith("data.pkl")
                fake.writestr(item, pickle.dumps(Payload(proof), protocol=2) if evil else real.read(item.filename))
        whole.unlink()


@pytest.mark.parametrize("how", ["pickle", "torch.save", "inside TorchScript"])
@pytest.mark.fault(
    "a pickle with a payload as a bundle's model.pt", "written as {how}; the card's hash is the file's own"
)
def test_pickle_in_a_bundle_is_not_run(tmp_path: Path, fault: Callable[[str], None], how: str) -> None:
    """A bundle from elsewhere is data: whatever its model.pt really is, loading it runs no pickle's code."""
    from beadwork.potential.importer import import_model
    from beadwork.potential.torchscript import TorchScriptEngine

    bundle, proof = tmp_path / "bundle", tmp_path / "proof"
    bundle.mkdir()
    _evil(bundle / "model.pt", how, proof)
    write_card(bundle, {"name": "evil", "elements": [1, 8], "cutoff": 3.5, "dtype": "float64"})
    with pytest.raises(ModelError) as caught:
        TorchScriptEngine(check(bundle))
    assert not proof.exists()
    with pytest.raises(ModelError):
        import_model(bundle / "model.pt", tmp_path / "out")
    assert not proof.exists()
    fault(f"ModelError, nothing was run: {str(caught.value).replace(str(tmp_path), '…')[:200]}")


@pytest.mark.fault("a bundle that was changed", "one byte of model.pt is flipped after the card was written")
def test_changed_bundle_is_refused(tmp_path: Path, fault: Callable[[str], None]) -> None:
    """The hash is checked before the file is read as a model."""
    from beadwork.potential.torchscript import TorchScriptEngine

    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "model.pt").write_bytes(random.Random(1).randbytes(5000))
    write_card(bundle, {"name": "changed", "elements": [1, 8], "cutoff": 3.5, "dtype": "float64"})
    data = bytearray((bundle / "model.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "model.pt").write_bytes(data)
    with pytest.raises(ModelError, match="not the file that its card describes") as caught:
        TorchScriptEngine(check(bundle))
    fault(f"ModelError: {str(caught.value).replace(str(tmp_path), '…')[:200]}")


def test_kernels_lie_where_only_the_user_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels are machine code: their folder is made for the user alone, whatever the umask."""
    monkeypatch.delenv("SYMMETRIX_JIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = os.umask(0o022)
    try:
        folder = kernel_cache()
    finally:
        os.umask(before)
    assert folder == (tmp_path / "cache" / "beadwork" / "kernels").resolve()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert kernel_cache().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("whose", ["open to all", "another user's"])
@pytest.mark.fault("a kernel cache that another user could fill", "its parent folder is {whose}")
def test_kernels_of_others_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[str], None], whose: str
) -> None:
    """Where someone else could have put the kernels, they are not loaded: the user is told to name another folder."""
    parent = tmp_path / "shared"
    parent.mkdir()
    monkeypatch.setenv("SYMMETRIX_JIT_CACHE", str(parent / "kernels"))
    kernel_cache()
    if whose == "open to all":
        parent.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(parent, 4711, 4711)
    else:
        pytest.skip("only root can give a folder away")
    with pytest.raises(ModelError, match="another user") as caught:
        kernel_cache()
    fault(f"ModelError: {str(caught.value).replace(str(tmp_path), '…')}")


@pytest.mark.slow
@pytest.mark.fault(
    "a connection that nobody asked for",
    "looked for: real i-PI over inet, a committee, a queue; every connect and bind of the server is audited",
)
def test_inet_connects_only_where_told(
    ipi: SimpleNamespace, models: Any, start: Any, tmp_path: Path, fault: Callable[[str], None]
) -> None:
    """Over a whole run the server connects to the address in the XML and to nothing else, and listens nowhere."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(mode="inet", batch=4)], steps=5).write()
    process = start.ipi(run)
    options = ["--baseline", models.baseline, "--delta", *models.delta, "--engine", "torchscript", "--queue", "q.db"]
    command = [sys.executable, "-c", AUDITED, "serve", run.path.name, *options]
    done = subprocess.run(
        [str(part) for part in command], cwd=run.folder, capture_output=True, text=True, timeout=240, check=False
    )
    assert process.wait(ipi.PATIENCE) == 0
    audit = done.stdout.strip().splitlines()[-1]
    port = ipi.free_port(run.folder, "water")
    assert audit == f"AUDIT 0 [\"socket.connect ('127.0.0.1', {port})\"]", done.stdout + done.stderr
    fault(f"one address in the whole run, the XML's: {audit.removeprefix('AUDIT 0 ').replace(str(port), 'PORT')}")


def test_no_name_in_tmp_is_our_own() -> None:
    """Nothing in the package makes a file of a name that others can foresee in a folder that all may write to.

    Scratch folders come from tempfile's mkdtemp (0700, random); i-PI's own default for its sockets is only read.
    """
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("/tmp"):
                found.append((file.name, node.value))
            if isinstance(node, ast.Attribute) and node.attr in ("mktemp", "gettempdir", "tempdir"):
                found.append((file.name, node.attr))
    assert found == [("simulation.py", "/tmp/ipi_")]
