"""What a captured graph has baked in about its module, and a quick check that it still holds.

A trace reads more than weights: which children there are, `padding_mode`, a LoRA's scale in a dict, an attention
processor's fields. `Snapshot` lists all of it once; `unchanged` compares object identities, which costs a fraction of
a millisecond for a module tree of 700; where something is another object, a new snapshot is taken and compared by
content.
"""

from __future__ import annotations

import enum
import itertools
import operator
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from rewriter.capture.ambient import plain_weight

_MACHINERY = frozenset(vars(torch.nn.Module())) - {"training"}
# The root's own `forward` and accelerate's wrapping of it lie outside of what is captured.
_OUTSIDE = frozenset({"forward", "_old_forward", "_hf_hook", "_diffusers_hook"})
_SCALARS = (
    type(None),
    bool,
    int,
    str,
    bytes,
    complex,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    torch.Size,
    range,
    slice,
)
_OPAQUE = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.MethodType, weakref.ref)
_DEEPEST = 12
_MOST_OBJECTS = 50_000
# Hooks that only collect the outputs of the call they run in: a trace records them faithfully.
_HARMLESS_HOOKS = frozenset({"transformers.utils.output_capturing"})

_Getter = Callable[[Any], tuple[Any, ...]]

_data_ptr = torch.Tensor.data_ptr


def _getter(names: tuple[Any, ...]) -> _Getter:
    """A C function from a dict to the tuple of its values under `names`."""
    return operator.itemgetter(*names) if len(names) > 1 else operator.itemgetter(names[0], names[0])


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


_serials = itertools.count()


class Snapshot:
    """The state of a module tree at one moment.

    fingerprint: equal for two snapshots exactly where one trace serves both.
    weights, names: parameters and buffers in the order of traversal (a tied one occurs twice), and their paths.
    blocked: why this module tree cannot be captured at all, or None.
    serial: another number for each snapshot.
    """

    def __init__(self, root: torch.nn.Module) -> None:
        self.serial = next(_serials)
        self.fingerprint: tuple[Any, ...] = ()
        self.names: list[str] = []
        self.weights: list[torch.Tensor] = []
        self.blocked: str | None = None
        self._order: dict[int, int] = {}
        self._described: dict[int, Any] = {}
        self._pins: list[Any] = []
        self._sizes: list[Any] = []
        self._getters: list[_Getter] = []
        self._containers: list[Any] = []
        self._constants: list[torch.Tensor] = []
        self._empty: list[Any] = []
        self._weight_getters: list[_Getter] = []
        self._weight_dicts: list[Any] = []
        self._scan(root)
        self._freeze(root)

    def unchanged(self, root: torch.nn.Module) -> bool:
        """Whether everything is still the very same object. False says no more than that a new snapshot is due."""
        own = root.__dict__
        try:
            return (
                all(map(operator.is_, self._root_getter(own), self._root_values))
                and len(own) == self._root_size
                and list(map(len, self._sizes)) == self._lengths
                and not any(self._empty)
                and _all_same(self._getters, self._containers, self._values)
                and list(map(type, self._modules)) == self._types
                and _all_same(self._weight_getters, self._weight_dicts, self._weight_values)
                and list(map(_data_ptr, self.weights)) == self._pointers
                and [_version(tensor) for tensor in self._constants] == self._constant_versions
            )
        except KeyError:
            return False

    def difference(self, other: Snapshot) -> str | None:
        """The path of the first thing in which the two states differ ("mid_block.scale"), or None."""
        for mine, theirs in itertools.zip_longest(self.fingerprint, other.fingerprint):
            if mine == theirs:
                continue
            if mine is None or theirs is None or mine[:3] != theirs[:3]:
                return str((mine or theirs)[0]) or "the module itself"
            parts = [part for part in (*mine[3:], *theirs[3:]) if part not in mine or part not in theirs]
            name = next((part[0] for part in parts if part and isinstance(part[0], str)), "its children")
            return f"{mine[0]}.{name}" if mine[0] else str(name)
        return None

    def restore(self, root: torch.nn.Module) -> None:
        """Puts back what tracing has changed in attributes, dicts and lists (not in tensors)."""
        for container, content in self._copies:
            target = root.__dict__ if container is None else container
            if isinstance(target, dict):
                for name in [name for name in target if name not in content]:
                    if container is not None or name not in _OUTSIDE:
                        del target[name]
                for name, value in content.items():
                    if target.get(name, self) is not value:
                        target[name] = value
            elif isinstance(target, list) and target != content:
                target[:] = content

    def _scan(self, root: torch.nn.Module) -> None:
        modules = list(root.named_modules())
        self._modules = [module for _, module in modules[1:]]
        self._types = [type(module) for module in self._modules]
        self._order = {id(module): index for index, (_, module) in enumerate(modules)}
        aliases: dict[int, int] = {}
        parts = [self._module(path, module, index == 0, aliases) for index, (path, module) in enumerate(modules)]
        self.fingerprint = tuple(parts)

    def _module(self, path: str, module: torch.nn.Module, is_root: bool, aliases: dict[int, int]) -> tuple[Any, ...]:
        described: list[Any] = [path, type(module), type(module).forward]
        for table in (module._parameters, module._buffers):
            self._size(table)
            if table:
                self._weight_getters.append(_getter(tuple(table)))
                self._weight_dicts.append(table)
            for name, weight in table.items():
                described.append((name, self._weight(f"{path}.{name}" if path else name, weight, aliases)))
        self._size(module._modules)
        if module._modules:
            self._watch(module._modules)
        described.append(
            tuple((name, None if child is None else self._order[id(child)]) for name, child in module._modules.items())
        )
        if not is_root:
            self._find_hooks(path, module)
        outside = _MACHINERY | _OUTSIDE if is_root else _MACHINERY
        # In a fixed order: code does not see the order of attributes, and putting one back moves it.
        attributes = {name: value for name, value in sorted(module.__dict__.items(), key=_name) if name not in outside}
        if is_root:
            self._root_getter = _getter(tuple(attributes))
            self._root_values = self._root_getter(module.__dict__)
            self._root_size = len(module.__dict__)
        else:
            self._sizes.append(module.__dict__)
            self._watch(module.__dict__, tuple(attributes))
        for name, value in attributes.items():
            described.append((name, self._describe(value, 0)))
        return tuple(described)

    def _weight(self, path: str, weight: torch.Tensor | None, aliases: dict[int, int]) -> Any:
        if weight is None:
            return None
        self.names.append(path)
        self.weights.append(weight)
        if not plain_weight(weight):
            self.blocked = self.blocked or f"the weight {path} is a {type(weight).__qualname__}, not a plain tensor"
        elif weight.is_meta:
            self.blocked = self.blocked or f"the weight {path} is on the meta device (offloaded or not loaded)"
        elif weight.is_inference():
            self.blocked = self.blocked or (
                f"the weight {path} was made under torch.inference_mode(), so changes to it cannot be noticed"
            )
        return (aliases.setdefault(id(weight), len(self.names)), weight.dtype, weight.device, weight.shape)

    def _find_hooks(self, path: str, module: torch.nn.Module) -> None:
        for table in (module._forward_pre_hooks, module._forward_hooks):
            foreign = [hook for hook in table.values() if getattr(hook, "__module__", None) not in _HARMLESS_HOOKS]
            if foreign and not self.blocked:
                name = getattr(foreign[0], "__qualname__", type(foreign[0]).__qualname__)
                self.blocked = f"the submodule {path} has a forward hook ({name})"
            if table:
                self._sizes.append(table)
                self._watch(table)
            else:
                self._empty.append(table)
        if "_hf_hook" in module.__dict__ and not self.blocked:
            kind = type(module.__dict__["_hf_hook"]).__name__
            self.blocked = f"the submodule {path} has a hook of accelerate ({kind})"
        if not self.blocked and (names := diffusers_hooks(module)):
            self.blocked = f"the submodule {path} has a hook of diffusers ({', '.join(names)})"

    def _size(self, container: Any) -> None:
        (self._sizes if container else self._empty).append(container)

    def _watch(self, container: Any, names: tuple[Any, ...] | None = None) -> None:
        if isinstance(container, dict):
            names = tuple(container) if names is None else names
            if not names:
                return
            self._getters.append(_getter(names))
        else:
            self._getters.append(tuple)
        self._containers.append(container)

    def _pin(self, value: Any) -> tuple[str, int]:
        # The reference keeps the id from being given to another object.
        self._pins.append(value)
        return ("is", id(value))

    def _describe(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in _SCALARS:
            return (kind, value)
        if kind is float:
            return (kind, repr(value))
        if isinstance(value, enum.Enum):
            return (kind, value.name)
        if isinstance(value, torch.nn.Module) and id(value) in self._order:
            return ("module", self._order[id(value)])
        if isinstance(value, torch.Tensor):
            # A tensor that no module registers is baked into a trace.
            self._constants.append(value)
            return (self._pin(value), _version(value))
        if isinstance(value, _OPAQUE) or depth > _DEEPEST or len(self._described) > _MOST_OBJECTS:
            return self._pin(value)
        if id(value) in self._described:
            return self._described[id(value)]
        self._pins.append(value)
        self._described[id(value)] = ("inside itself", kind)
        self._described[id(value)] = description = self._container(value, kind, depth + 1)
        return description

    def _container(self, value: Any, kind: type, depth: int) -> Any:
        if isinstance(value, dict):
            self._size(value)
            self._watch(value)
            items = tuple((self._describe(key, depth), self._describe(item, depth)) for key, item in value.items())
            # A subclass of dict (diffusers' FrozenDict) repeats its content as attributes.
            plain = kind in (dict, OrderedDict) or not getattr(value, "__dict__", None)
            return (kind, items, () if plain else self._attributes(value, depth))
        if isinstance(value, list | tuple | set | frozenset | deque):
            if not isinstance(value, tuple | frozenset):
                self._size(value)
                self._watch(value)
            items = tuple(self._describe(item, depth) for item in value)
            return (kind, items)
        if hasattr(value, "__dict__") and not _foreign(kind):
            return (_qualified(kind), self._pin(kind), self._attributes(value, depth))
        return self._pin(value)

    def _attributes(self, value: Any, depth: int) -> tuple[Any, ...]:
        attributes = value.__dict__
        self._size(attributes)
        self._watch(attributes)
        return tuple((name, self._describe(item, depth)) for name, item in sorted(attributes.items(), key=_name))

    def _freeze(self, root: torch.nn.Module) -> None:
        self._lengths = list(map(len, self._sizes))
        self._values = list(_values(self._getters, self._containers))
        self._weight_values = list(_values(self._weight_getters, self._weight_dicts))
        self._pointers = list(map(_data_ptr, self.weights)) if not self.blocked else []
        self._constant_versions = [_version(tensor) for tensor in self._constants]
        # Copies of what a trace could change. The root's own dict is named by None: holding it would make a cycle
        # that keeps the module alive until the garbage collector runs.
        own = root.__dict__
        self._copies: list[tuple[Any, Any]] = [(None, {n: v for n, v in own.items() if n not in _OUTSIDE})]
        for container in itertools.chain(self._sizes, self._empty):
            if isinstance(container, dict):
                self._copies.append((container, dict(container)))
            elif isinstance(container, list):
                self._copies.append((container, list(container)))


def diffusers_hooks(module: torch.nn.Module) -> list[str]:
    """The names of the hooks that diffusers keeps in a module's registry; models with a cache have an empty one."""
    registry = module.__dict__.get("_diffusers_hook")
    return list(getattr(registry, "hooks", ()))


def _values(getters: list[_Getter], containers: list[Any]) -> Iterator[Any]:
    return itertools.chain.from_iterable(map(operator.call, getters, containers))


def _all_same(getters: list[_Getter], containers: list[Any], expected: list[Any]) -> bool:
    return all(map(operator.is_, _values(getters, containers), expected))


def _name(item: tuple[Any, Any]) -> str:
    return str(item[0])


def _version(tensor: torch.Tensor) -> int:
    # Tensors made under inference mode have no version counter.
    return -1 if tensor.is_inference() else tensor._version


def _foreign(kind: type) -> bool:
    """Classes whose instances are not a module's state: locks, loggers, code of the standard library."""
    return kind.__module__.partition(".")[0] in {"_thread", "threading", "logging", "builtins", "functools", "rewriter"}
