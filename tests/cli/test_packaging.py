from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[2]


# Folders that lie inside `rewriter` once installed.
FOLDERS = ("rewriter", "ops", "rules", "csrc", "schemas")


def _settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def test_every_package_is_listed() -> None:
    settings = _settings()
    names = []
    for package, folder in {"rewriter": "rewriter", **settings["package-dir"]}.items():
        for path in (ROOT / folder).rglob("__init__.py"):
            names.append(".".join([package, *path.parent.relative_to(ROOT / folder).parts]))
    assert sorted(names) == sorted(settings["packages"])


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The files in a wheel built from a copy of the sources, so that nothing is left behind in the repository."""
    pytest.importorskip("setuptools", minversion="77")
    sources, target = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, sources / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, sources)
    program = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", program, str(target)], cwd=sources, check=True, capture_output=True, timeout=120
    )
    (wheel,) = target.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_wheel_has_one_import_name(wheel_names: list[str]) -> None:
    roots = {name.split("/")[0] for name in wheel_names}
    assert "rewriter" in roots
    assert all(root == "rewriter" or root.endswith(".dist-info") for root in roots)


def test_wheel_has_all_code_and_data(wheel_names: list[str]) -> None:
    mapped = {folder: name.replace(".", "/") for name, folder in _settings()["package-dir"].items()}
    expected = {"rewriter/py.typed", "rewriter/schemas/rule-file.schema.json"}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".json", ".safetensors", ".cpp", ".cu", ".h"):
                relative = path.relative_to(ROOT / folder).as_posix()
                expected.add(f"{mapped.get(folder, folder)}/{relative}")
    assert expected - set(wheel_names) == set()


def test_wheel_has_no_tests(wheel_names: list[str]) -> None:
    assert not [name for name in wheel_names if "/tests/" in name or name.startswith("tests")]
