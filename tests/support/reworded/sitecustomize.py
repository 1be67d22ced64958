"""Every sentence of the package in other words: for a Python that finds this on its path, and for all that it starts.

The letters of each module's sentences are shifted along the alphabet by a number of its own, and its semicolons are
slashes: what one module says another cannot know again. Tests are read without what they assert of words; what they
assert of steps, committees, types and exit codes stays.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from zlib import crc32

#: two words of a language, one after the other
SENTENCE = re.compile(r"[A-Za-zΔ]{2,}[,:;.]? [a-z]{2,}")
#: words by themselves: no option, key, file name, field of a format, or tag
WORD = re.compile(r"%\(\w+\)|\{[^{}]*\}|(?<![\w.{<$%/-])[A-Za-z]{2,}(?![\w}>=(/-]|\.\w)")
#: languages of others
FOREIGN = re.compile(r"\s*(<|#!|import |(SELECT|CREATE|UPDATE|DELETE|INSERT|SET|LOCK|PRAGMA)\b)")
#: by the names that they are assigned to: what libraries say, and words of formats
KEPT = {"DISK_FULL_TEXTS", "OUT_OF_MEMORY_TEXTS", "COLUMNS", "_WITHOUT"}
#: names that tests give to words which they look for
SAID = {"said", "sentence", "reason", "words"}


def shifted(text: str, by: int) -> str:
    """The same in other words."""

    def word(match: re.Match[str]) -> str:
        if not match[0].isalpha():  # a field of a format
            return match[0]
        return "".join(chr((ord(c) - (a := 97 if c.islower() else 65) + by) % 26 + a) for c in match[0])

    return WORD.sub(word, text).replace("; ", " / ")


class Rewording(ast.NodeTransformer):
    """Rewrites the sentences of one module."""

    def __init__(self, module: str) -> None:
        self._by = crc32(module.encode()) % 25 + 1

    def _says(self, text: str) -> bool:
        return text == "; " or bool(SENTENCE.search(text) and not FOREIGN.match(text) and "nan nan" not in text)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        kept = any(isinstance(target, ast.Name) and target.id in KEPT for target in node.targets)
        return node if kept else self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str) and self._says(node.value):
            return ast.copy_location(ast.Constant(shifted(node.value, self._by)), node)
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
        says = self._says("".join(map(str, parts)))
        for part in node.values:
            if isinstance(part, ast.Constant):
                if says or part.value == "; ":
                    part.value = shifted(str(part.value), self._by)
            elif isinstance(part, ast.FormattedValue):
                self.visit(part.value)  # not its format
        return node


class Unsaid(ast.NodeTransformer):
    """Takes what a test asserts of words out of it."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        for part in ast.walk(node.test):
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and SENTENCE.search(part.value):
                return ast.copy_location(ast.Pass(), node)
            if isinstance(part, ast.Compare) and isinstance(part.ops[0], ast.In | ast.NotIn):
                left = ast.unparse(part.left)
                if left in SAID or (isinstance(part.left, ast.Constant) and " " in left):
                    return ast.copy_location(ast.Pass(), node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "raises":
            node.keywords = [one for one in node.keywords if one.arg != "match"]
        return node


class Loader(SourceFileLoader):
    """Loads a module so; what is compiled is kept nowhere."""

    def get_code(self, fullname: str) -> CodeType:
        tree = ast.parse(self.get_data(self.path), self.path)
        tests = fullname.rpartition(".")[2].startswith("test_")
        tree = ast.fix_missing_locations((Unsaid() if tests else Rewording(fullname)).visit(tree))
        return compile(tree, self.path, "exec", dont_inherit=True)


class Finder(MetaPathFinder):
    """Finds what is rewritten: the package, and modules of tests."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        last = fullname.rpartition(".")[2]
        if not (fullname.partition(".")[0] == "beadwork" or last.startswith("test_")):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


sys.meta_path.insert(0, Finder())
