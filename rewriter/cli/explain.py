"""`rewriter explain TARGET`: where each rule fired, and what kept the near misses from it."""

from __future__ import annotations

import argparse

from rewriter.cli import targets
from rewriter.cli.output import OK, WrongUsage, clean_stdout, print_json, progress

NAME = "explain"
SUMMARY = "where each rule fired; for each near miss, how far it got and what refused it"
DESCRIPTION = """\
Optimises one network of a pipeline, runs it once, and says for each rule where it fired. For each near miss it says
how many statements of the pattern matched, which node refused, and why.
"""
EXAMPLE = "rewriter explain sd15-tiny --rule group-norm-silu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    targets.add_arguments(parser)
    parser.add_argument("--rule", metavar="R", help="explain only this rule, with every near miss")
    parser.add_argument(
        "--component",
        metavar="NAME",
        help="the network to explain (default: the one that runs in every step)",
    )
    targets.add_rules(parser)


def run(arguments: argparse.Namespace) -> int:
    """Explains the target. Returns 0."""
    with clean_stdout(), progress("explaining"):
        import torch

        import rewriter

        rules = targets.rules(arguments)
        if arguments.rule is not None and arguments.rule not in rules:
            from rewriter.language.names import nearest

            hint = nearest(arguments.rule, [rule.id for rule in rules])
            raise WrongUsage(
                f"--rule: found {arguments.rule!r}, expected the id of one of the {len(rules)} rules"
                + (f"; did you mean {hint}?" if hint else "")
            )
        step = targets.step_of(targets.load(arguments), arguments.component, {})
        rewriter.optimize(step.module, rules=rules, measure=False)
        with torch.no_grad():
            getattr(step.module, step.method)(*step.args, **step.kwargs)
        explanation = rewriter.explain(step.module, rule=arguments.rule)
    if arguments.json:
        print_json(explanation.to_dict())
    else:
        print(explanation)
    return OK
