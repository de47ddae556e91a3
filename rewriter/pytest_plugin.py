"""Proves rules inside pytest: `pytest --rewriter-rules my_rules.yaml`.

Each rule, dtype and provider is a test, `my_rules.yaml::group-norm-silu[f16-triton]`. The proofs run in a process of
their own, so that a kernel that breaks it costs one test, and pytest itself does not load torch.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from rewriter.proof.pool import Worker
    from rewriter.proof.results import Results

_EXAMPLES = 50
_THOROUGH = 1000


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options; without `--rewriter-rules` nothing else happens."""
    group = parser.getgroup("rewriter", "proofs of graph-rewriting rules")
    group.addoption(
        "--rewriter-rules", action="append", default=[], metavar="FILE", help="prove the rules of this file or folder"
    )
    group.addoption("--rewriter-device", choices=("cpu", "cuda"), default="cpu", help="where to prove them")
    group.addoption("--rewriter-examples", type=int, default=_EXAMPLES, metavar="N", help="for each proof")
    group.addoption("--rewriter-import", action="append", default=[], metavar="MODULE", help="of ops of your own")
    group.addoption("--thorough", action="store_true", help=f"{_THOROUGH} examples for each proof of a rule")


def pytest_configure(config: pytest.Config) -> None:
    """Adds the rule files to what is collected. Without other arguments nothing else is."""
    named = config.getoption("--rewriter-rules")
    if not named:
        return
    files = [file for name in named for file in _files(config.invocation_params.dir / name)]
    config.stash[_FILES] = frozenset(files)
    given = config.args if config.args_source is pytest.Config.ArgsSource.ARGS else []
    config.args = [*given, *map(str, files)]


def pytest_collect_file(file_path: pathlib.Path, parent: pytest.Collector) -> pytest.Collector | None:
    """A rule file that was asked for."""
    if file_path in parent.config.stash.get(_FILES, frozenset()):
        collector: pytest.Collector = RuleFile.from_parent(parent, path=file_path)
        return collector
    return None


def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the processes."""
    for worker in config.stash.get(_WORKERS, {}).values():
        worker.close()


class RuleFile(pytest.File):
    """The rules of a file."""

    def collect(self) -> Iterable[pytest.Item]:
        """A test for each rule, dtype and provider."""
        from rewriter.proof.pool import Refused

        try:
            about = _worker(self.config, self.path).about()
        except Refused as error:
            raise self.CollectError(str(error)) from error
        return list(self.items(about["rules"]))

    def items(self, rules: Iterable[dict[str, Any]]) -> Iterator[pytest.Item]:
        for rule in rules:
            for provider in rule["providers"]:
                for dtype in rule["dtypes"]:
                    name = f"{rule['id']}[{dtype}-{provider}]"
                    yield RuleItem.from_parent(self, name=name, rule=rule["id"], dtype=dtype, provider=provider)


class Unproved(Exception):
    """A rule that is not proved; the message is the report."""


class RuleItem(pytest.Item):
    """The proof of a rule in a dtype by a provider."""

    def __init__(self, *, rule: str, dtype: str, provider: str, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.rule, self.dtype, self.provider = rule, dtype, provider

    def runtest(self) -> None:
        """Raises Unproved, or skips where the provider takes no example."""
        from rewriter.proof.campaign import prove_one
        from rewriter.proof.jobs import Job, Request

        options = self.config.option
        request = Request(
            setup=_worker(self.config, self.path).setup,
            examples=_THOROUGH if options.thorough else options.rewriter_examples,
            mutants=False,
        )
        job = Job(kind="prove", rule=self.rule, dtype=self.dtype, provider=self.provider)
        results = prove_one(_worker(self.config, self.path), request, job)
        if results.problems or results.failed:
            raise Unproved(_report(results))
        (proof,) = results.proofs
        if not proof.examples:
            pytest.skip(f"{self.provider} takes none of {proof.unsupported} examples: {proof.refusal}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The failure alone; the traceback would be that of this plugin."""
        return str(excinfo.value) if isinstance(excinfo.value, Unproved) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[pathlib.Path, int | None, str]:
        """The rule's file and the name of the test."""
        return self.path, None, self.name


_FILES = pytest.StashKey[frozenset[pathlib.Path]]()
_WORKERS = pytest.StashKey[dict[pathlib.Path, "Worker"]]()


def _worker(config: pytest.Config, file: pathlib.Path) -> Worker:
    """The process for a file. There is one at a time: pytest goes through the files one by one."""
    from rewriter.proof.pool import Setup, Worker

    workers = config.stash.setdefault(_WORKERS, {})
    if file not in workers:
        setup = Setup(
            sources=(str(file),),
            device=config.getoption("--rewriter-device"),
            imports=tuple(config.getoption("--rewriter-import")),
        )
        workers[file] = Worker(setup)
    for other, worker in workers.items():
        if other != file:
            worker.close()
    return workers[file]


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    """The rule files of a folder; anything else is left for the loader to judge."""
    path = path.absolute()
    if not path.exists():
        raise pytest.UsageError(f"--rewriter-rules: found {path}, expected a rule file or a folder of them")
    if not path.is_dir():
        return [path]
    from rewriter.language.loader import PATTERNS

    return sorted(file for pattern in PATTERNS for file in path.rglob(pattern))


def _report(results: Results) -> str:
    lines = list(results.problems)
    for proof in results.failed:
        assert proof.failure is not None
        lines.append(f"{proof.rule} is not proved in {proof.dtype} by {proof.provider}: {proof.failure.kind}")
        lines.append(proof.failure.message)
        if proof.failure.operands:
            lines.append(f"with {proof.failure.operands}")
        lines.append(f"alone: {results.command(proof)}")
    return "\n".join(lines)
