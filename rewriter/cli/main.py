"""The `rewriter` command: arguments, dispatch, exit status.

Nothing here or at the top of a command's module imports torch, so that `--help` and wrong usage answer at once.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from rewriter.cli import bench, check, demo, explain, rules, test
from rewriter.cli.output import FINDINGS, INTERRUPTED, USAGE, WrongUsage, complain
from rewriter.errors import RewriterError, RuleError, UnknownTarget

_COMMANDS = (demo, check, rules, explain, test, bench)
_EPILOG = """\
exit status: 0 all is well, 1 there are findings, 2 wrong usage, 3 not everything could be tried

example:
  rewriter demo
"""


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"rewriter {version('rewriter')}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line. A parsed namespace has `run`, the function of the chosen command."""
    parser = argparse.ArgumentParser(
        prog="rewriter",
        description="Makes diffusers pipelines fast by rewriting their traced graphs with rules that people can read.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        added = commands.add_parser(
            command.NAME,
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            epilog=f"example:\n  {command.EXAMPLE}\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(added)
        added.add_argument("--json", action="store_true", help="print one JSON document instead of text")
        added.set_defaults(run=command.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0 all is well, 1 findings, 2 wrong usage, 3 incomplete, 130 interrupted."""
    parsed = build_parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A rule file's text may hold what a terminal of another encoding has no sign for.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status: int = parsed.run(parsed)
        sys.stdout.flush()
    except (WrongUsage, UnknownTarget, RuleError) as error:
        complain(str(error))
        return USAGE
    except RewriterError as error:
        complain(str(error))
        return FINDINGS
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe such as `| head` has what it wanted.
        _drop_output()
        return 0
    except OSError as error:
        # Files that a command reads or writes have errors of their own: this is the output, or a disk that is full.
        complain(f"{error.filename or 'the output'}: {error.strerror or error}")
        _drop_output()
        return FINDINGS
    return status


def _drop_output() -> None:
    """What is still to be written must not be flushed when the interpreter exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
