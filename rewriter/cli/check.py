"""`rewriter check FILE...`: validates and lints rule files."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

from rewriter.cli.output import FINDINGS, OK, print_json, progress
from rewriter.errors import RuleError

if TYPE_CHECKING:
    from rewriter.language import RuleSet

NAME = "check"
SUMMARY = "validate and lint rule files"
DESCRIPTION = """\
Validates and lints rule files: YAML, the rule format, and every rule against the ops that are registered here.
Each file is checked by itself; files without errors are then checked together, as one set of rules.
Then a few operands are drawn from each rule's `inputs` and `dims`, and the rule has to fire on its own pattern; whether
it is right is for `rewriter test`.
Prints every error as FILE:LINE:COLUMN: rule ID: problem. The exit status is 1 if there is one.
"""
EXAMPLE = "rewriter check rules/default/norm.yaml my-rules.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="a rule file, or a folder of them")


def run(arguments: argparse.Namespace) -> int:
    """Checks the files. Returns 0, or 1 if there are errors."""
    files = list(dict.fromkeys(file for name in arguments.files for file in _files(name)))
    errors, rules = _check(files)
    if arguments.json:
        print_json({"files": files, "rules": rules, "errors": [_error_document(error) for error in errors]})
    else:
        for error in errors:
            print(error)
        checked = _count(len(files), "file")
        print(f"{_count(len(errors), 'error')} in {checked}" if errors else f"{checked}, {_count(rules, 'rule')}: ok")
    return FINDINGS if errors else OK


def _files(name: str) -> list[str]:
    """The rule files of a folder; anything else, and a folder without any, is left for the loader to judge."""
    from rewriter.language.loader import rule_files

    return [str(path) for path in rule_files(pathlib.Path(name))] or [name]


def _check(files: list[str]) -> tuple[list[RuleError], int]:
    """All errors, and how many rules the files without errors hold."""
    errors: list[RuleError] = []
    sets: list[RuleSet] = []
    with progress("checking", len(files)) as bar:
        from rewriter.language import load_rules
        from rewriter.proof.entry import unprovable

        for file in files:
            try:
                rules = load_rules(pathlib.Path(file))
            except RuleError as error:
                errors.append(error)
            else:
                unproved = [error for error in map(unprovable, rules) if error is not None]
                errors += unproved
                sets += [] if unproved else [rules]
            bar.update()
        if len(sets) > 1:
            try:
                load_rules(list(sets))
            except RuleError as error:
                errors.append(error)
    return errors, sum(len(rules) for rules in sets)


def _error_document(error: RuleError) -> dict[str, Any]:
    return {
        "file": error.position.file,
        "line": error.position.line,
        "column": error.position.column,
        "rule": error.rule,
        "problem": error.problem,
        "found": error.found,
        "expected": error.expected,
        "suggestion": error.suggestion,
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
