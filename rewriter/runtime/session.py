"""`optimize` and `restore`: which targets are optimised, how, and with which components."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from rewriter.errors import RewriterError
from rewriter.ops import providers
from rewriter.runtime import schedulers
from rewriter.runtime.component import Component
from rewriter.runtime.fitness import refuse_unfit
from rewriter.runtime.networks import component_of, find_networks, install, remove
from rewriter.runtime.program import Options

if TYPE_CHECKING:
    from rewriter.language import RuleSet

Target = TypeVar("Target")


@dataclasses.dataclass(eq=False)
class _Session:
    """One optimised target. Components are owned by their modules, so nothing here keeps a model alive."""

    options: Options
    components: dict[str, weakref.ref[Component]]


_sessions: weakref.WeakKeyDictionary[Any, _Session] = weakref.WeakKeyDictionary()
_lock = threading.RLock()


def optimize(
    target: Target,
    rules: str | RuleSet | list[str | RuleSet] = "default",
    *,
    verify: bool = True,
    strict: bool = False,
    measure: bool = True,
) -> Target:
    """Makes a diffusers pipeline, or a single module, run through rewritten graphs. Returns the same object.

    Each network captures its graph on its first call; that call and the first one with another shape or number are
    also run eagerly and compared. `rules` is a pack name, a path, a RuleSet, or a list of these with "-rule-id"
    removing a rule. `verify=False` skips the comparisons, `strict=True` raises CaptureError or VerificationError
    where a network would otherwise run eagerly, `measure=False` keeps rewrites without timing them.
    A target optimised with the same rules is left as it is; with others, it is restored and optimised anew.

    Raises TypeError for another kind of target and RuleError for unusable rules, such as those of the pack `lowp` on a
    GPU that gains nothing by them; then nothing has changed.
    """
    networks = find_networks(target)
    if any(weight.is_cuda for network in networks.values() for weight in network.parameters()):
        providers.begin()
    from rewriter.language import load_rules

    options = Options(rules=load_rules(rules), verify=verify, strict=strict, measure=measure)
    refuse_unfit(options.rules)
    with _lock:
        before = _components(_sessions.get(target))
        components = {name: _component(module, name, options) for name, module in networks.items()}
        for component in components.values():
            component.users.add(target)
        _let_go(target, [component for component in before if component not in components.values()])
        _sessions[target] = _Session(
            options=options, components={name: weakref.ref(component) for name, component in components.items()}
        )
        schedulers.attach(target)
    return target


def _component(module: torch.nn.Module, name: str, options: Options) -> Component:
    present = component_of(module)
    if present is not None and present.options.same(options):
        return present
    users = list(present.users) if present is not None else []
    remove(module)
    component = install(module, name, options)
    for user in users:
        component.users.add(user)
        for other, reference in list(_sessions[user].components.items()) if user in _sessions else []:
            if reference() is present:
                _sessions[user].components[other] = weakref.ref(component)
    return component


def restore(target: Target) -> Target:
    """Puts every `forward` back that `optimize` replaced. Returns the same object; harmless if it is not optimised.

    A network that another optimised pipeline uses too stays optimised until that one is restored or gone.
    """
    networks = find_networks(target)
    with _lock:
        session = _sessions.pop(target, None)
        components = _components(session)
        if session is None and isinstance(target, torch.nn.Module):
            # A network of a pipeline, named by itself: whoever uses it.
            components = [found for module in networks.values() if (found := component_of(module)) is not None]
            for component in components:
                component.users.clear()
        _let_go(target, components)
        schedulers.detach(target)
    return target


def _components(session: _Session | None) -> list[Component]:
    references = session.components.values() if session is not None else ()
    return [component for reference in references if (component := reference()) is not None]


def _let_go(target: object, components: list[Component]) -> None:
    for component in components:
        component.users.discard(target)
        module = component.module
        if not component.users and module is not None and component_of(module) is component:
            remove(module)


def components_of(target: object) -> dict[str, Component]:
    """The components of an optimised target by name. Raises RewriterError if it is not optimised."""
    networks = find_networks(target)
    with _lock:
        session = _sessions.get(target)
        if session is not None:
            found = {name: component for name, reference in session.components.items() if (component := reference())}
        else:
            found = {name: c for name, module in networks.items() if (c := component_of(module)) is not None}
    if not found:
        raise RewriterError(f"this {type(target).__name__} is not optimised; call rewriter.optimize(target) first")
    return found
