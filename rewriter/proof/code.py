"""The code that a rule's proof runs: the files that its ops and all their providers depend on, and a hash of them.

It is read from the sources and not from what is loaded, so that it is the same on every machine: where an op has no
kernel for want of a GPU, too. A file too many makes a proof count for less; one too few would let it count for code
that it never ran.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.resources
import inspect
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from rewriter.proof.native import Units

if TYPE_CHECKING:
    from rewriter.language import Rule
    from rewriter.ops.registry import Kernel

_PREFIX = "rewriter::"
_ROOT = "rewriter.ops"
# Every call of every op goes through them.
_SHARED = (f"{_ROOT}.registry", f"{_ROOT}.dispatch")
# Enters the kernels of `csrc`, and builds them. Of the first only its own text counts: it imports all of them.
_BIND, _BUILD = f"{_ROOT}.cuda.bind", f"{_ROOT}.cuda.build"
_ENTERS = ("define", "provide")


@functools.cache
def here() -> Sources:
    """The sources of this installation."""
    from rewriter import ops

    return Sources(pathlib.Path(ops.__file__).parent, pathlib.Path(str(importlib.resources.files("rewriter.csrc"))))


def code_digest(rule: Rule) -> str:
    """A hash of the code that the rule's proof runs, on any machine.

    Ops and providers that others add count with the files that their functions stand in.
    """
    ops = named(rule)
    return here().digest(ops, {path.name: path for op in ops for path in _foreign(op)})


def named(rule: Rule) -> tuple[str, ...]:
    """The `rewriter::*` ops of the rule's pattern, preparation and replacement, without the namespace."""
    ops = {call.op for step in (*rule.match, *rule.replace) for call in step.calls}
    ops |= {op for statement in rule.prepare for op in statement.ops}
    return tuple(sorted(op.removeprefix(_PREFIX) for op in ops if op.startswith(_PREFIX)))


class Sources:
    """The files of the folders `ops` and `csrc`, read once."""

    def __init__(self, ops: pathlib.Path, csrc: pathlib.Path) -> None:
        self.files = {".".join((_ROOT, *_dotted(path.relative_to(ops)))): path for path in ops.rglob("*.py")}
        self.units = Units(csrc)
        self._modules: dict[str, _Module] = {}
        self._ops: dict[str, frozenset[pathlib.Path]] = {}
        # What importing the package enters; a module that nothing imports has no provider.
        self._entered = self._closure([_ROOT], lambda module: {*module.imports, *module.mentioned})

    def digest(self, ops: Iterable[str], more: dict[str, pathlib.Path] | None = None) -> str:
        """A hash of the names and the contents of what these ops depend on, and of `more` files by name."""
        named = {**(more or {}), **{self._name(path): path for op in ops for path in self.of(op)}}
        digest = hashlib.sha256()
        for name in sorted(named):
            content = named[name].read_bytes()
            digest.update(f"{name}\n{len(content)}\n".encode() + content)
        return digest.hexdigest()[:16]

    def of(self, op: str) -> frozenset[pathlib.Path]:
        """The files that `rewriter::OP` and all its providers depend on."""
        if op not in self._ops:
            self._ops[op] = frozenset(self._files(op))
        return self._ops[op]

    def _files(self, op: str) -> Iterator[pathlib.Path]:
        seeds = [name for name in self._entered if not self._is_package(name) and self._module(name).enters(op)]
        modules = self._closure(seeds, lambda module: module.imports)
        native = [self._module(name).native for name in modules if self._module(name).native is not None]
        if native:
            modules |= self._closure([_BUILD], lambda module: module.imports) | {_BIND}
            for functions in native:
                yield from self.units.of(functions or ())
        # What packages only import and list has its place above; what else they do concerns whoever imports them.
        modules |= {name for name in self._entered if self._is_package(name) and self._module(name).acts}
        for name in {*modules, *_SHARED}:
            if name in self.files:
                yield self.files[name]

    def _closure(self, start: Iterable[str], further: Callable[[_Module], Iterable[str]]) -> set[str]:
        """The modules from these on, without what lies behind the ones that all ops share."""
        found: set[str] = set()
        waiting = list(start)
        while waiting:
            name = waiting.pop()
            if name in found or name not in self.files:
                continue
            found.add(name)
            if name not in _SHARED or name in start:
                waiting += further(self._module(name))
        return found

    def _module(self, name: str) -> _Module:
        if name not in self._modules:
            text = self.files[name].read_text(encoding="utf-8")
            self._modules[name] = _Module(name, ast.parse(text), self.files, package=self._is_package(name))
        return self._modules[name]

    def _is_package(self, name: str) -> bool:
        return self.files[name].name == "__init__.py"

    def _name(self, path: pathlib.Path) -> str:
        names = {file: name for name, file in self.files.items()}
        return names.get(path) or f"csrc/{self.units.name(path)}"


class _Module:
    """What a module imports, which ops it enters, and which functions of `csrc` it calls."""

    def __init__(self, name: str, tree: ast.Module, known: Iterable[str], *, package: bool) -> None:
        self.name, self.package = name, package
        known = frozenset(known)
        nodes = list(ast.walk(tree))
        self.imports = {found for node in nodes for found in self._imports(node, known)}
        texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        self.mentioned = texts & known
        self.acts = package and not all(map(_lists, tree.body))
        calls = [node for node in nodes if isinstance(node, ast.Call) and _called(node) in _ENTERS]
        computed = any(not node.args or not isinstance(node.args[0], ast.Constant | ast.JoinedStr) for node in calls)
        # A name that is computed may come from any identifier, such as a function's.
        self._words = texts | ({word for node in nodes for word in _identifiers(node)} if computed else set())
        # The schema of a definition begins with the op's name.
        self._words |= {text.partition("(")[0] for text in texts}
        self.native = _native(nodes, texts)

    def enters(self, op: str) -> bool:
        """Whether the module may define the op or provide it."""
        return op in self._words

    def _imports(self, node: ast.AST, known: frozenset[str]) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = self.name.split(".")
                above = parts[: len(parts) - node.level + self.package]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                yield inside if inside in known else base


def _native(nodes: Iterable[ast.AST], texts: Iterable[str]) -> set[str] | None:
    """The functions of `csrc` that are called: none as None, and those that cannot be told as an empty set."""
    library = "rewriter_cuda"
    whole = {
        id(node.value): node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == library
    }
    mentions = [id(node) for node in nodes if library in _identifiers(node)]
    if any(library in text for text in texts) or any(mention not in whole for mention in mentions):
        return set()
    return set(whole.values()) or None


def _identifiers(node: ast.AST) -> tuple[str, ...]:
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        return (node.attr,)
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return (node.name,)
    return (node.name, node.asname or "") if isinstance(node, ast.alias) else ()


def _called(node: ast.Call) -> str:
    return _identifiers(node.func)[0] if isinstance(node.func, ast.Name | ast.Attribute) else ""


def _lists(statement: ast.stmt) -> bool:
    """Whether a statement of a package only imports, lists what is there, or is its docstring."""
    if isinstance(statement, ast.Assign):
        return [ast.unparse(target) for target in statement.targets] == ["__all__"]
    return isinstance(statement, ast.Import | ast.ImportFrom) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def _dotted(path: pathlib.Path) -> tuple[str, ...]:
    parts = path.with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def _foreign(op: str) -> Iterator[pathlib.Path]:
    """The files of the functions that others have entered for the op."""
    from rewriter.ops.registry import OPS

    for provider in OPS[op].providers.values() if op in OPS else ():
        path = _file(provider.fn)
        if path is not None and path not in here().files.values():
            yield path


def _file(kernel: Kernel) -> pathlib.Path | None:
    while isinstance(kernel, functools.partial):
        kernel = kernel.func
    module = inspect.getmodule(kernel) or inspect.getmodule(type(kernel))
    file = getattr(module, "__file__", None)
    return pathlib.Path(file) if file and pathlib.Path(file).is_file() else None
