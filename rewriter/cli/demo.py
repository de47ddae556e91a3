"""`rewriter demo`: draws the same pictures eagerly and optimised."""

from __future__ import annotations

import argparse
import pathlib

from rewriter.cli import targets
from rewriter.cli.output import FINDINGS, OK, clean_stdout, made, print_json, whole_number

NAME = "demo"
SUMMARY = "a pipeline, eager against optimised: pictures, times and a report"
DESCRIPTION = """\
Draws the same seeds eagerly and optimised with the bundled digits pipeline, or with another one. Writes both grids of
pictures and their difference as PNG, and a report as HTML; prints times, matches and the error. The exit status is 1
if a network fell back to eager.
"""
EXAMPLE = "rewriter demo --model sd15-tiny --out pictures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "--model",
        default="digits",
        metavar="M",
        help="built-in architecture, local folder or hub id (default: digits)",
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("demo-output"),
        metavar="DIR",
        help="where the pictures and the report go (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=whole_number, metavar="N", help="denoising steps (default: what suits the model)"
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the noise (default: %(default)s)")
    targets.add_placement(parser)
    targets.add_rules(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the demo. Returns 0, or 1 if a network fell back to eager."""
    with clean_stdout():
        from rewriter.demo import run_demo

        dtype, device = targets.placement(arguments)
        rules = targets.rules(arguments)
        result = run_demo(
            arguments.model,
            out=made(arguments.out),
            steps=arguments.steps,
            seed=arguments.seed,
            rules=rules,
            dtype=dtype,
            device=device,
        )
    if arguments.json:
        print_json(result.to_dict())
    else:
        print(result)
    return FINDINGS if result.fallbacks else OK


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number below 2**63")
    return int(text)
