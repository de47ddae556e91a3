"""What a captured graph has baked in about its module, and a quick check that it still holds.

A trace reads more than weights: which children there are, `padding_mode`, a LoRA's scale in a dict, an attention
processor's fields. `Snapshot` lists all of it once; `unchanged` compares object identities, which costs a fraction of
a millisecond for a module tree of 700; where something is another object, a new snapshot is taken and compared by
content.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import operator
from collections.abc import Collection, Iterator
from typing import Any

import torch

from rewriter.capture import adapters
from rewriter.capture.ambient import plain_weight
from rewriter.capture.describing import Describer, call_of, name_of
from rewriter.capture.scales import Scales
from rewriter.capture.watching import AdapterWatch, Watch, data_ptr, getter, version

_MACHINERY = frozenset(vars(torch.nn.Module())) - {"training"}
# The root's own `forward` and accelerate's wrapping of it lie outside of what is captured.
_OUTSIDE = frozenset({"forward", "_old_forward", "_hf_hook", "_diffusers_hook"})
# What peft, diffusers and transformers note down about adapters and loading; only their own methods read it.
_ABOUT_ADAPTERS = frozenset(
    {
        "_hf_peft_config_loaded",
        "_prepare_lora_hotswap_kwargs",
        "_safe_fusing",
        "_weight_conversions",
        "lora_scale",
        "peft_config",
    }
)
# Hooks that only collect the outputs of the call they run in: a trace records them faithfully.
_HARMLESS_HOOKS = frozenset({"transformers.utils.output_capturing"})


_serials = itertools.count()
# What somebody may replace in a class, for all of its modules at once.
_forward = operator.attrgetter("forward")


class Snapshot:
    """The state of a module tree at one moment. A layer with adapters counts as its base layer where it equals that
    with another weight; `refused` names kinds of adapters for which it does not.

    fingerprint: equal for two snapshots exactly where one trace serves both.
    weights, names: parameters and buffers in the order of traversal (a tied one occurs twice), and their paths.
    adapted: the layers read as their base layer, with the indices of their weight and bias (or None) in `weights`.
    scales: numbers in the module tree that are inputs of graphs.
    branched: the ids of the weights of peft's other layers, which are part of what a trace records.
    blocked: why this module tree cannot be captured at all, or None.
    serial: another number for each snapshot.
    """

    def __init__(self, root: torch.nn.Module, refused: Collection[str] = ()) -> None:
        self.serial = next(_serials)
        self.fingerprint: tuple[Any, ...] = ()
        self.names: list[str] = []
        self.weights: list[torch.Tensor] = []
        self.adapted: list[tuple[adapters.Layer, int, int | None]] = []
        self.scales = Scales()
        self.branched: set[int] = set()
        self.blocked: str | None = None
        self._refused = refused
        self._adapters = AdapterWatch()
        self._order: dict[int, int] = {}
        self._watch = Watch()
        self._describer = Describer(self._order, self._watch)
        self._weight_tables = Watch()
        self._wrappers: list[tuple[torch.nn.Module, str, torch.nn.Module, torch.nn.Module]] = []
        self._scan(root)
        self._freeze(root)

    def unchanged(self, root: torch.nn.Module) -> bool:
        """Whether everything is still the very same object. False says no more than that a new snapshot is due."""
        try:
            return self._same_but_for_adapters(root) and self._adapters.same()
        except KeyError:
            return False

    @property
    def adapter_weights(self) -> list[torch.Tensor]:
        """The tensors that the additions to the adapted layers are computed from."""
        return self._adapters.tensors

    def opaque(self) -> dict[int, Any]:
        """The objects that the fingerprint names by their ids, since they have no content to be compared."""
        return self._describer.opaque()

    def moved(self) -> None:
        """Takes note that the weights' values were moved to other places in memory on purpose."""
        self._pointers = list(map(data_ptr, self.weights))

    @contextlib.contextmanager
    def bare(self) -> Iterator[None]:
        """Puts the base layers in the place of the adapted ones while the block runs."""
        for parent, name, _, base in self._wrappers:
            parent._modules[name] = base
        try:
            yield
        finally:
            for parent, name, wrapper, _ in self._wrappers:
                parent._modules[name] = wrapper

    def again(self, root: torch.nn.Module) -> Snapshot:
        """A new snapshot, taken in the same way."""
        return Snapshot(root, self._refused)

    def switched(self, root: torch.nn.Module) -> Snapshot | None:
        """A new snapshot of a module tree in which nothing but adapters has changed since this one, or None where more
        may have. Of a tree of thousands of modules only the adapted layers are read."""
        try:
            if not self.adapted or self.blocked or not self._same_but_for_adapters(root):
                return None
        except KeyError:
            return None
        fresh = copy.copy(self)
        fresh.serial, fresh.adapted, fresh._adapters = next(_serials), [], AdapterWatch()
        for old, weight, bias in self.adapted:
            layer = adapters.read(old.module, self._entangled, self._refused)
            if layer is None or layer.base is not old.base:
                return None
            fresh.adapted.append((layer, weight, bias))
            fresh._adapters.add(layer)
        if not self._bases.isdisjoint(map(id, fresh._adapters.tensors)):
            return None
        fresh._adapters.freeze()
        return fresh

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

    def _same_but_for_adapters(self, root: torch.nn.Module) -> bool:
        """As `unchanged`, but adapters of adapted layers may be others. Raises KeyError where a name is gone."""
        own = root.__dict__
        return (
            all(map(operator.is_, self._root_getter(own), self._root_values))
            and len(own) == self._root_size
            and self._watch.same()
            and type(root) is self._classes[0]
            and list(map(type, self._modules)) == self._types
            and list(map(_forward, self._classes)) == self._forwards
            and list(map(call_of, self._describer.callables)) == self._calls
            and self._weight_tables.same()
            and list(map(data_ptr, self.weights)) == self._pointers
            and list(map(version, self._describer.constants)) == self._constant_versions
        )

    def _scan(self, root: torch.nn.Module) -> None:
        modules = list(self._walk(root))
        self._modules = [module for _, module, _ in modules[1:]]
        self._types = [type(module) for module in self._modules]
        # The root's comes first.
        self._classes = list(dict.fromkeys(type(module) for _, module, _ in modules))
        self._forwards = list(map(_forward, self._classes))
        self._order.update({id(module): index for index, (_, module, _) in enumerate(modules)})
        for _, _, wrapper, base in self._wrappers:
            self._order[id(wrapper)] = self._order[id(base)]
        aliases: dict[int, int] = {}
        parts = []
        for index, (path, module, layer) in enumerate(modules):
            first = len(self.weights)
            parts.append(self._module(path, module, index == 0, aliases))
            if layer is not None:
                # The weight comes first, then the bias.
                self.adapted.append((layer, first, None if module._parameters.get("bias") is None else first + 1))
                self._adapters.add(layer)
        # An adapter made of one of these is not beside its layer but part of it.
        self._bases = {id(weight) for layer, *_ in self.adapted for weight in layer.base.parameters(recurse=False)}
        self.fingerprint = tuple(parts)

    def _walk(self, root: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, adapters.Layer | None]]:
        """As `named_modules`, with base layers in the place of adapted ones."""
        wrapped = any(map(adapters.is_wrapped, root.modules()))
        entangled = self._entangled = adapters.entangled(root) if wrapped else set()
        seen: set[int] = set()

        def visit(
            path: str, module: torch.nn.Module, layer: adapters.Layer | None
        ) -> Iterator[tuple[str, torch.nn.Module, adapters.Layer | None]]:
            if id(module) in seen:
                return
            seen.add(id(module))
            yield path, module, layer
            for name, child in module._modules.items():
                if child is None:
                    continue
                within = f"{path}.{name}" if path else name
                found = None
                if adapters.is_wrapped(child):
                    found = adapters.read(child, entangled, self._refused)
                    if found is None:
                        self.branched.update(map(id, child.parameters()))
                if found is not None:
                    self._wrappers.append((module, name, child, found.base))
                yield from visit(within, child if found is None else found.base, found)

        return visit("", root, None)

    def _module(self, path: str, module: torch.nn.Module, is_root: bool, aliases: dict[int, int]) -> tuple[Any, ...]:
        described: list[Any] = [path, type(module), type(module).forward]
        for table in (module._parameters, module._buffers):
            self._watch.size(table)
            self._weight_tables.items(table)
            for name, weight in table.items():
                described.append((name, self._weight(f"{path}.{name}" if path else name, weight, aliases)))
        self._watch.size(module._modules)
        self._watch.items(module._modules)
        described.append(
            tuple((name, None if child is None else self._order[id(child)]) for name, child in module._modules.items())
        )
        if not is_root:
            self._find_hooks(path, module)
        outside = _MACHINERY | _OUTSIDE if is_root else _MACHINERY
        if not adapters.of_peft(module):
            outside = outside | _ABOUT_ADAPTERS
        # In a fixed order: code does not see the order of attributes, and putting one back moves it.
        attributes = {
            name: value for name, value in sorted(module.__dict__.items(), key=name_of) if name not in outside
        }
        if is_root:
            self._root_getter = getter(tuple(attributes))
            self._root_values = self._root_getter(module.__dict__)
            self._root_size = len(module.__dict__)
        else:
            self._watch.size(module.__dict__)
            self._watch.items(module.__dict__, tuple(attributes))
        for name, value in attributes.items():
            # Described in any case, for what is described is watched.
            content = self._describer.describe(value)
            described.append((name, self.scales.describe(module, path, name, value) or content))
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
            self._watch.size(table)
            self._watch.items(table)
        if module._compiled_call_impl is not None and not self.blocked:
            self.blocked = f"the submodule {path} is compiled by torch.compile; use rewriter or torch.compile, not both"
        if "_hf_hook" in module.__dict__ and not self.blocked:
            kind = type(module.__dict__["_hf_hook"]).__name__
            self.blocked = f"the submodule {path} has a hook of accelerate ({kind})"
        if not self.blocked and (names := diffusers_hooks(module)):
            self.blocked = f"the submodule {path} has a hook of diffusers ({', '.join(names)})"

    def _freeze(self, root: torch.nn.Module) -> None:
        self._watch.freeze()
        self._weight_tables.freeze()
        self._adapters.freeze()
        self._pointers = list(map(data_ptr, self.weights)) if not self.blocked else []
        self._constant_versions = list(map(version, self._describer.constants))
        self._calls = list(self._describer.callables.values())
        # Copies of what a trace could change. The root's own dict is named by None: holding it would make a cycle
        # that keeps the module alive until the garbage collector runs.
        own = root.__dict__
        self._copies: list[tuple[Any, Any]] = [(None, {n: v for n, v in own.items() if n not in _OUTSIDE})]
        for container in self._watch.sized():
            if isinstance(container, dict):
                self._copies.append((container, dict(container)))
            elif isinstance(container, list):
                self._copies.append((container, list(container)))


def diffusers_hooks(module: torch.nn.Module) -> list[str]:
    """The names of the hooks that diffusers keeps in a module's registry; models with a cache have an empty one."""
    registry = module.__dict__.get("_diffusers_hook")
    return list(getattr(registry, "hooks", ()))
