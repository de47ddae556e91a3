"""`rewriter test [FILE...]`: the proof of each rule; with a GPU also its speed."""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from rewriter.cli.output import FINDINGS, INCOMPLETE, OK, WrongUsage, complain, made, print_json, whole_number
from rewriter.cli.targets import DTYPES

if TYPE_CHECKING:
    from rewriter.proof.pool import Setup
    from rewriter.proof.results import Results

NAME = "test"
SUMMARY = "the proof of each rule; with a GPU also its speed; writes the machine's verdict file"
DESCRIPTION = """\
Proves each rule of the files, or of the default pack, on inputs drawn from its own entry: in every dtype, by every
provider of its ops, against its own pattern in float64. The proofs run in a process of their own, so that a kernel
that breaks it costs one proof. The verdict on this machine is kept where `rewriter.optimize` reads it: rules that
failed are left out there. The verdict says of each rule what its proofs are of: the rule itself, the code that its ops
depend on, the machine and its versions. With --since, only the rules for which one of these has changed, or that were
not done, are proved anew, and the rest is taken from that verdict. The exit status is 1 if a rule failed or a mutant of
it survived, 3 if nothing failed but something could not be tried. Ended by a signal, or when the time is over, it still
writes what it found.
"""
EXAMPLE = "rewriter test my-rules.yaml --device cuda --time --out verdict"

_EXAMPLES = 50
_THOROUGH = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="a rule file, or a folder of them")
    parser.add_argument(
        "--pack",
        action="append",
        default=[],
        metavar="P",
        help="a pack; may be repeated (default: default, without FILE)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: %(default)s)")
    parser.add_argument("--rule", action="append", default=[], metavar="R", help="only this rule; may be repeated")
    parser.add_argument(
        "--dtype", action="append", default=[], choices=tuple(DTYPES), help="only this; may be repeated"
    )
    parser.add_argument("--provider", action="append", default=[], metavar="P", help="only this one; may be repeated")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--examples", type=whole_number, default=_EXAMPLES, metavar="N", help="for each proof (default: %(default)s)"
    )
    amount.add_argument("--thorough", action="store_true", help=f"{_THOROUGH} examples for each proof")
    parser.add_argument("--seed", type=int, metavar="S", help="draw other examples than usual")
    parser.add_argument("--example", metavar="TEXT", help="run this one example, with --rule and --provider")
    parser.add_argument("--time", action="store_true", help="time the rules at the shapes of real models, on a GPU")
    parser.add_argument(
        "--shapes",
        type=whole_number,
        default=2,
        metavar="N",
        help="to time for each rule and model (default: %(default)s)",
    )
    parser.add_argument(
        "--mutants",
        action=argparse.BooleanOptionalAction,
        help="also try mutations of each rule, which must not pass (default: on a CPU)",
    )
    parser.add_argument(
        "--since",
        type=pathlib.Path,
        metavar="PATH",
        help="a verdict file, or a folder with one: prove only what has changed since, and keep the rest of it",
    )
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="write the verdict, a page and a summary there")
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="of ops and providers of your own",
    )
    parser.add_argument(
        "--timeout", type=whole_number, default=120, metavar="S", help="seconds for one example (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs",
        type=whole_number,
        metavar="N",
        help="processes at once, except for timing (default: one per core, fewer where a GPU is too small for that)",
    )
    parser.add_argument(
        "--within", type=whole_number, metavar="S", help="seconds after which what is not done is left (status 3)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Proves the rules. Returns 0, 1 if there are findings, or 3 if something could not be tried."""
    from rewriter.proof import verdict
    from rewriter.proof.jobs import UnknownChoice
    from rewriter.proof.pool import Refused
    from rewriter.proof.summary import markdown

    if arguments.out is not None:
        made(arguments.out)
    try:
        results = _example(arguments) if arguments.example else _campaign(arguments)
    except (Refused, UnknownChoice) as error:
        raise WrongUsage(str(error)) from error
    unwritten = False
    if not arguments.example:
        unwritten |= not _written(
            "the verdict", verdict.path(results.machine.name).parent, lambda _: verdict.keep(results)
        )
    if arguments.out is not None:
        unwritten |= not _written("the report", arguments.out, lambda folder: _report(results, folder))
    if arguments.json:
        from rewriter.proof.results import to_document

        print_json(to_document(results))
    else:
        print(markdown(results), end="")
    if results.failed or results.survivors:
        return FINDINGS
    return INCOMPLETE if results.problems or unwritten else OK


def _campaign(arguments: argparse.Namespace) -> Results:
    from rewriter.cli.proving import interruptible, shown
    from rewriter.proof.campaign import Stop
    from rewriter.proof.campaign import run as prove
    from rewriter.proof.jobs import Request
    from rewriter.proof.pool import Refused

    if arguments.time and arguments.device != "cuda":
        raise WrongUsage("--time: found --device cpu, expected --device cuda")
    request = Request(
        setup=_setup(arguments),
        rules=tuple(arguments.rule),
        dtypes=tuple(arguments.dtype),
        providers=tuple(arguments.provider),
        examples=_THOROUGH if arguments.thorough else arguments.examples,
        seed=arguments.seed,
        mutants=arguments.device == "cpu" if arguments.mutants is None else arguments.mutants,
        jobs=arguments.jobs or _cores(),
        within=arguments.within,
        since=None if arguments.since is None else _since(arguments.since),
    )
    stop = Stop()
    with shown() as progress, interruptible(stop):
        try:
            return prove(request, progress, stop)
        except Refused as error:
            if stop.reason:
                # Before anything was found.
                raise KeyboardInterrupt from error
            raise


def _since(path: pathlib.Path) -> Results | None:
    """The earlier verdict; None, with a line that says so, for one of an older format. Raises WrongUsage."""
    from rewriter.proof import verdict

    file = path / "verdict.json" if path.is_dir() else path
    try:
        return verdict.read(file)
    except OSError as error:
        raise WrongUsage(f"--since: cannot read {file}: {error.strerror or error}; expected a verdict file") from error
    except verdict.Outdated as error:
        complain(f"nothing of {file} is kept: {error}")
        return None
    except verdict.Unusable as error:
        raise WrongUsage(f"--since: {file}: {error}") from error


def _example(arguments: argparse.Namespace) -> Results:
    from rewriter.proof.campaign import run_example
    from rewriter.proof.outcome import Example

    if arguments.since is not None:
        raise WrongUsage("--since: expected no --example beside it")
    if len(arguments.rule) != 1 or len(arguments.provider) != 1:
        raise WrongUsage("--example: expected one --rule and one --provider beside it")
    try:
        example = Example.parse(arguments.example)
    except ValueError as error:
        raise WrongUsage(f"--example: {error}") from error
    return run_example(_setup(arguments), arguments.rule[0], arguments.provider[0], example)


def _setup(arguments: argparse.Namespace) -> Setup:
    from rewriter.proof.pool import Setup

    return Setup(
        sources=(*arguments.files, *arguments.pack) or ("default",),
        device=arguments.device,
        imports=tuple(arguments.imports),
        shapes=arguments.shapes if arguments.time else 0,
        silence=arguments.timeout,
    )


def _report(results: Results, folder: pathlib.Path) -> None:
    from rewriter.proof import verdict
    from rewriter.proof.page import page
    from rewriter.proof.summary import markdown

    folder.mkdir(parents=True, exist_ok=True)
    verdict.write(results, folder / "verdict.json")
    (folder / "verdict.html").write_text(page(results), encoding="utf-8")
    (folder / "summary.md").write_text(markdown(results), encoding="utf-8")


def _written(what: str, folder: pathlib.Path, write: Callable[[pathlib.Path], None]) -> bool:
    """Whether it could be; a full or read-only disk must not cost what was found out."""
    try:
        write(folder)
    except OSError as error:
        complain(f"{what} could not be written to {folder}: {error.strerror or error}")
        return False
    return True


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
