"""The verdict file of a machine: written by `rewriter test`, read by `optimize`, which leaves out what failed."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import logging
import pathlib
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rewriter.measure.cache import cache_folder
from rewriter.measure.disk import NOTHING_KEPT, write_whole
from rewriter.proof.code import code_digest
from rewriter.proof.machine import machine_name
from rewriter.proof.results import FALLBACKS, FORMAT, Results, of_document, to_document
from rewriter.proof.since import merged

if TYPE_CHECKING:
    from rewriter.language import RuleSet
    from rewriter.proof.outcome import Proof

logger = logging.getLogger("rewriter")


class Unusable(ValueError):
    """A verdict file that cannot be believed; the message says why."""


class Outdated(Unusable):
    """A verdict file of an older format, which does not say what code each rule's proofs are of."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """What a machine's verdicts rule out. `rules`: id to reason; `providers`: (op, provider) to reason.

    `ignored`: verdict files, or what they say against some rules, that were not used, and why.
    """

    rules: Mapping[str, str]
    providers: Mapping[tuple[str, str], str]
    ignored: tuple[str, ...]


def path(machine: str) -> pathlib.Path:
    """Where the verdict on a machine of this name is kept."""
    return cache_folder() / "verdicts" / f"{re.sub(r'[^a-z0-9]+', '-', machine.lower()).strip('-') or 'unknown'}.json"


def keep(results: Results) -> None:
    """Merges the results into this machine's verdict file. Raises OSError where it cannot be written."""
    kept = path(results.machine.name)
    try:
        results = merged(read(kept), results)
    except NOTHING_KEPT:
        pass
    except Unusable as error:
        logger.warning("the verdict file %s is replaced: %s", kept, error)
    write(results, kept)


def write(results: Results, target: pathlib.Path) -> None:
    """Writes the file as a whole or not at all. Raises OSError."""
    write_whole(target, json.dumps(to_document(results), indent=1, allow_nan=False) + "\n")


def read(source: pathlib.Path) -> Results:
    """The results in a file. Raises Unusable for what is no verdict, Outdated for an older one, and OSError."""
    return _parsed(source.read_text(encoding="utf-8", errors="replace"))


def excluded(device: str, rules: RuleSet) -> Excluded:
    """What the verdicts on this machine say against these rules: the user's own file, and those that are shipped.

    A rule is out where its replacement fails with the ops' references, or by every provider that was tried; otherwise
    only the providers are that fail. A verdict on another rule of the same name counts for nothing, and one on other
    code of the rule's ops too; the rules that are in for that reason are named.
    """
    name = machine_name(device)
    found: dict[str, str] = {}
    providers: dict[tuple[str, str], str] = {}
    ignored: list[str] = []
    for where, text in _files(name):
        try:
            verdict = _parsed(text)
            if (verdict.machine.device, verdict.machine.name) != (device, name):
                raise Unusable(f"it is about {verdict.machine.name}, and this is {name}")
        except Unusable as error:
            ignored.append(f"the verdict file {where} is ignored: {error}")
            continue
        other = list(_collect(verdict, rules, found, providers))
        if other:
            ignored.append(
                f"failures in the verdict file {where} are of other code and ignored: {', '.join(other)}; "
                f"`rewriter test --device {device} --since {shlex.quote(where)}` proves anew what has changed"
            )
    return Excluded(rules=found, providers=providers, ignored=tuple(ignored))


def _collect(
    verdict: Results, rules: RuleSet, found: dict[str, str], providers: dict[tuple[str, str], str]
) -> Iterator[str]:
    """Enters what failed. Yields the rules whose failures are of other code."""
    for rule in rules:
        proofs = [proof for proof in verdict.proofs if proof.rule == rule.id]
        failed = [proof for proof in proofs if not proof.proved]
        basis = verdict.rules.get(rule.id)
        if not failed or basis is None or basis.digest != rule.digest:
            continue
        if basis.code != code_digest(rule):
            yield rule.id
            continue
        ops = {call.op for step in rule.replace for call in step.calls if call.op.startswith("rewriter::")}
        tried = {proof.provider for proof in proofs if proof.examples or not proof.proved}
        basic = [proof for proof in failed if proof.provider in FALLBACKS]
        if basic or {proof.provider for proof in failed} == tried:
            found.setdefault(rule.id, _reason(rule.id, (basic or failed)[0], verdict))
            continue
        for proof in failed:
            for op in sorted(ops):
                key = (op.removeprefix("rewriter::"), proof.provider)
                providers.setdefault(key, _reason(f"{key[0]} by {key[1]}", proof, verdict))


def _reason(what: str, proof: Proof, verdict: Results) -> str:
    assert proof.failure is not None
    date = verdict.rules[proof.rule].date
    return f"{what} failed its proof on this machine ({proof.dtype}, {proof.failure.kind}, {date})"


def _files(name: str) -> Iterator[tuple[str, str]]:
    """The user's verdict on the machine and the shipped ones about machines of its name, as texts."""
    own = path(name)
    candidates: Iterable[Any] = [own]
    shipped = importlib.resources.files("rewriter.proof").joinpath("verdicts")
    if shipped.is_dir():
        candidates = [own, *(file for file in shipped.iterdir() if file.name == own.name)]
    for file in candidates:
        try:
            yield str(file), file.read_text(encoding="utf-8", errors="replace")
        except NOTHING_KEPT:
            continue
        except OSError as error:
            logger.warning("the verdict file %s cannot be read: %s", file, error)


@functools.lru_cache(maxsize=8)
def _parsed(text: str) -> Results:
    try:
        document = json.loads(text, parse_constant=_no_number)
    except ValueError as error:
        raise Unusable(f"it is not JSON ({error})") from None
    if isinstance(document, dict) and document.get("format") in range(1, FORMAT):
        raise Outdated(
            f"it has format {document['format']} and not {FORMAT}, so all of it counts as of other code; "
            "`rewriter test` proves the rules anew"
        )
    wrong = next(_schema().iter_errors(document), None)
    if wrong is not None:
        raise Unusable(f"at {wrong.json_path}: {wrong.message[:200]}")
    try:
        return of_document(document)
    except (KeyError, TypeError, ValueError) as error:
        raise Unusable(str(error)) from error


def _no_number(text: str) -> float:
    raise ValueError(f"found {text}, which JSON does not have")


@functools.cache
def _schema() -> Any:
    import jsonschema

    text = importlib.resources.files("rewriter.schemas").joinpath("verdict.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft7Validator(json.loads(text))
