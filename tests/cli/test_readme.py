from __future__ import annotations

import pathlib
import re

import pytest

from rewriter.cli.main import build_parser, main

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_rule_stands_in_the_pack(capsys: pytest.CaptureFixture[str]) -> None:
    block = re.search(r"```yaml\n(id: ([\w-]+)\n.*?)```", README, re.DOTALL)
    assert block
    assert main(["rules", block[2]]) == 0
    assert capsys.readouterr().out.endswith(block[1])


def test_the_commands_exist() -> None:
    listed = re.findall(r"^rewriter (\w+) ", README, re.MULTILINE)
    arguments = {"check": ["FILE"], "explain": ["TARGET"], "bench": ["TARGET"]}
    assert listed
    for command in listed:
        assert build_parser().parse_args([command, *arguments.get(command, [])]).command == command


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (pathlib.Path(__file__).parents[2] / link).exists()] == []
