"""`rewriter rules`: lists the rules, or shows one with its documentation."""

from __future__ import annotations

import argparse
import difflib
import pathlib
from typing import TYPE_CHECKING, Any

from rewriter.cli.output import OK, USAGE, complain, print_json, progress, table

if TYPE_CHECKING:
    from rewriter.language import Rule, RuleSet

NAME = "rules"
SUMMARY = "list the rules, or show one with its documentation"
DESCRIPTION = """\
Lists the rules of a pack in the order in which they are tried, or shows one of them as it stands in its file.
"""
EXAMPLE = "rewriter rules group-norm-silu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("rule", nargs="?", metavar="RULE", help="the id of the rule to show")
    parser.add_argument(
        "--pack",
        default="default",
        metavar="P",
        help="a pack that comes with rewriter, or the path of a rule file or folder (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Lists the pack or shows the rule. Returns 0, or 2 if there is no such rule."""
    with progress("loading rules"):
        from rewriter.language import load_rules

        pack = load_rules(arguments.pack)
    if arguments.rule is None:
        _print_list(pack, arguments)
        return OK
    if arguments.rule not in pack:
        near = difflib.get_close_matches(arguments.rule, [rule.id for rule in pack], n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; `rewriter rules --pack {arguments.pack}` lists them"
        complain(f"unknown rule {arguments.rule!r} in {arguments.pack}{hint}")
        return USAGE
    rule = pack[arguments.rule]
    if arguments.json:
        print_json(_document(rule, full=True))
    else:
        print(_text(rule))
    return OK


def _print_list(pack: RuleSet, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json({"pack": arguments.pack, "digest": pack.digest, "rules": [_document(rule) for rule in pack]})
        return
    rows = [("RULE", "PHASE", "FILE", "SUMMARY")]
    rows += [(rule.id, rule.phase, pathlib.Path(rule.position.file).name, rule.summary) for rule in pack]
    print(table(rows))


def _document(rule: Rule, *, full: bool = False) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": rule.id,
        "pack": rule.pack,
        "phase": rule.phase,
        "benefit": rule.benefit,
        "summary": rule.summary,
        "file": rule.position.file,
        "line": rule.position.line,
    }
    if full:
        document |= {
            "doc": rule.doc,
            "match": rule.match_text,
            "prepare": rule.prepare_text,
            "replace": rule.replace_text,
            "ignore": dict(rule.ignore),
            "may_escape": list(rule.may_escape),
            "require": [str(expression) for expression in rule.require],
            "sm": None if rule.sm is None else str(rule.sm),
            "devices": list(rule.devices),
            "tolerance": rule.tolerance,
            "source": _source(rule),
        }
    return document


def _text(rule: Rule) -> str:
    parts = [f"{rule.id} ({rule.pack}, {rule.phase}): {rule.summary}"]
    if rule.doc:
        parts.append(rule.doc.strip())
    parts.append(f"{rule.position.file}:{rule.position.line}")
    parts.append(_source(rule))
    return "\n\n".join(parts)


def _source(rule: Rule) -> str:
    """The rule as its author wrote it: its entry in the list `rules`, without the indentation."""
    lines = pathlib.Path(rule.position.file).read_text(encoding="utf-8").splitlines()
    start = rule.position.line - 1
    indent = len(lines[start]) - len(lines[start].lstrip(" -"))
    while lines[start][:indent].strip() != "-" and start > 0:
        start -= 1
    entry = [lines[start][indent:]]
    for line in lines[start + 1 :]:
        if line.strip() and line[:indent].strip():
            break
        entry.append(line[indent:])
    return "\n".join(entry).rstrip()
