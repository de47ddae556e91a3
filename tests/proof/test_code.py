"""The digest of a rule's code follows every file that its ops depend on, and no other."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from rewriter.language import load_rules
from rewriter.ops import providers
from rewriter.ops.registry import OPS
from rewriter.proof import code
from rewriter.proof.code import Sources

# "norm" and "rope" have kernels in Triton, "linear" and "conv" in csrc too, and "conv" those of "linear" inside.
NAMES = ("norm", "rope", "linear", "conv")
FILES = {
    "ops/__init__.py": "from rewriter.ops import conv, dispatch, linear, norm, providers, registry, rope\n",
    "ops/registry.py": "OPS = {}\n",
    "ops/dispatch.py": "from rewriter.ops import providers, registry\n",
    "ops/providers.py": 'PACKAGES = {"cuda": "rewriter.ops.cuda.bind", "triton": "rewriter.ops.triton"}\n',
    "ops/precision.py": "",
    "ops/norm.py": 'from rewriter.ops.registry import define\n\ndefine(f"norm(Tensor x, {REST}) -> Tensor", norm)\n',
    "ops/rope.py": 'from rewriter.ops.registry import define\n\ndefine("rope(Tensor x) -> Tensor", rope)\n',
    "ops/linear.py": 'from rewriter.ops.precision import widen\n\ndefine("linear(Tensor x) -> Tensor", linear)\n',
    "ops/conv.py": 'import rewriter.ops.registry as r\n\nr.define("conv(Tensor x) -> Tensor", conv)\n',
    "ops/triton/__init__.py": '"""Kernels."""\n\nfrom rewriter.ops.triton import conv, linear, norm, rope\n',
    "ops/triton/norm.py": 'from .kernels import whole\n\nfor name in ("norm",):\n    provide(name, "triton", whole)\n',
    "ops/triton/kernels.py": "def whole():\n    from rewriter.ops.triton import rows\n",
    "ops/triton/rows.py": "",
    "ops/triton/rope.py": 'provide("rope", "triton", rope)\n',
    "ops/triton/linear.py": 'provide("linear", "triton", linear)\n',
    "ops/triton/conv.py": 'from rewriter.ops.triton.linear import product\n\nprovide("conv", "triton", product)\n',
    "ops/cuda/__init__.py": "",
    "ops/cuda/bind.py": "from rewriter.ops.cuda import build, conv, linear\n\nconv.enter()\nlinear.enter()\n",
    "ops/cuda/build.py": "from rewriter.ops.cuda.compiler import compile\n",
    "ops/cuda/compiler.py": "",
    "ops/cuda/linear.py": 'def enter():\n    provide("linear", "cuda", torch.ops.rewriter_cuda.product)\n',
    "ops/cuda/conv.py": 'def enter():\n    provide("conv", "cuda", torch.ops.rewriter_cuda.convolution)\n',
    "csrc/linear.cpp": '#include "blas.h"\n#include "runtime.h"\n  library.def("product(Tensor x) -> ()");\n',
    "csrc/blas.h": "",
    "csrc/runtime.h": "#include <cuda.h>\n",
    "csrc/conv.cpp": '#include "conv.h"\n#include "runtime.h"\n  library.def(\n      "convolution(Tensor x) -> ()");\n',
    "csrc/conv.h": "",
    "csrc/conv.cu": '#include "conv.h"\n# include "tiles.h"\n',
    "csrc/tiles.h": "",
}


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    """Folders `ops` and `csrc` as this package has them, but small."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def digests(tree: pathlib.Path) -> dict[str, str]:
    sources = Sources(tree / "ops", tree / "csrc")
    return {name: sources.digest([name]) for name in NAMES}


def changed(tree: pathlib.Path, *files: str, text: str = "\n") -> set[str]:
    """The ops whose digests change when text is added to the files."""
    before = digests(tree)
    for file in files:
        with (tree / file).open("a", encoding="utf-8") as stream:
            stream.write(text)
    return {name for name, digest in digests(tree).items() if before[name] != digest}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("ops/norm.py", {"norm"}),
        ("ops/precision.py", {"linear"}),
        ("ops/triton/rope.py", {"rope"}),
        # What a provider's module imports, what that imports, and what a function imports when it is called.
        ("ops/triton/kernels.py", {"norm"}),
        ("ops/triton/rows.py", {"norm"}),
        ("ops/triton/linear.py", {"linear", "conv"}),
        ("ops/triton/conv.py", {"conv"}),
        ("ops/cuda/linear.py", {"linear"}),
        # A launcher, what it includes, the unit that defines what the header declares, and what that includes.
        ("csrc/linear.cpp", {"linear"}),
        ("csrc/blas.h", {"linear"}),
        ("csrc/conv.cpp", {"conv"}),
        ("csrc/conv.h", {"conv"}),
        ("csrc/conv.cu", {"conv"}),
        ("csrc/tiles.h", {"conv"}),
        ("csrc/runtime.h", {"linear", "conv"}),
        # What builds and enters the kernels of csrc.
        ("ops/cuda/bind.py", {"linear", "conv"}),
        ("ops/cuda/build.py", {"linear", "conv"}),
        ("ops/cuda/compiler.py", {"linear", "conv"}),
        # What every call goes through.
        ("ops/registry.py", set(NAMES)),
        ("ops/dispatch.py", set(NAMES)),
        # Lists of what there is.
        ("ops/providers.py", set()),
        ("ops/__init__.py", set()),
        ("ops/triton/__init__.py", set()),
    ],
)
def test_an_edit_changes_what_depends_on_it(tree: pathlib.Path, file: str, expected: set[str]) -> None:
    assert changed(tree, file) == expected


def test_a_new_provider_changes_its_op_once_it_is_entered(tree: pathlib.Path) -> None:
    new = tree / "ops" / "triton" / "other_rope.py"
    provider = 'from rewriter.ops.registry import provide\n\nprovide("rope", "other", print, print)\n'
    before = digests(tree)
    new.write_text(provider)
    assert digests(tree) == before
    assert changed(tree, "ops/triton/__init__.py", text="from . import other_rope\n") == {"rope"}
    # Its name from that of a function, and its kernel elsewhere.
    named = "from .far import rope\nfrom ..registry import provide\n\nprovide(rope.__name__, 'other', rope, rope)\n"
    (tree / "ops" / "triton" / "far.py").write_text("def rope(): ...\n")
    new.write_text(named)
    before = digests(tree)
    assert changed(tree, "ops/triton/far.py") == {"rope"}


def test_a_package_that_does_more_than_to_list_counts_for_all(tree: pathlib.Path) -> None:
    assert changed(tree, "ops/triton/__init__.py", text="print()\n") == set(NAMES)


def test_kernels_that_cannot_be_told_count_with_all_of_csrc(tree: pathlib.Path) -> None:
    with (tree / "ops" / "triton" / "rope.py").open("a") as stream:
        stream.write("\nlibrary = torch.ops.rewriter_cuda\n")
    assert "rope" in changed(tree, "csrc/linear.cpp")


def test_a_unit_that_belongs_to_no_function_counts_for_all_of_them(tree: pathlib.Path) -> None:
    (tree / "csrc" / "shared.cu").write_text('#include "inner/deep.h"\n')
    (tree / "csrc" / "inner").mkdir()
    (tree / "csrc" / "inner" / "deep.h").write_text("")
    assert changed(tree, "csrc/shared.cu") == {"linear", "conv"}
    assert changed(tree, "csrc/inner/deep.h", text="//\n") == {"linear", "conv"}


def test_the_digest_does_not_depend_on_where_the_files_lie(tree: pathlib.Path, tmp_path: pathlib.Path) -> None:
    before = digests(tree)
    shutil.copytree(tree / "ops", tmp_path / "elsewhere" / "rewriter" / "ops")
    shutil.copytree(tree / "csrc", tmp_path / "elsewhere" / "sources")
    sources = Sources(tmp_path / "elsewhere" / "rewriter" / "ops", tmp_path / "elsewhere" / "sources")
    assert {name: sources.digest([name]) for name in NAMES} == before


def test_the_kernels_of_this_package_are_found() -> None:
    """In csrc too, where no GPU is needed for it; a module of nothing but others' kernels leaves them out."""
    files = {path.name for path in code.here().of("conv_act")}
    assert {"conv.py", "product.py", "registry.py", "build.py", "convolution.cpp", "convolution.cu", "wgmma.h"} <= files
    assert not {"linear.cpp", "group_norm.py", "rotary.py"} & files
    files = {path.name for path in code.here().of("group_norm_silu")}
    assert {"group_norm.py", "group_norm_kernels.py", "planes.py", "dispatch.py"} <= files
    assert not {"conv.py", "build.py", "runtime.h"} & files


def test_every_provider_that_is_there_is_among_the_files() -> None:
    """What is entered at run time was found in the sources, under whatever name it was entered."""
    providers.load()
    files = set(code.here().files.values())
    for name, op in OPS.items():
        for provider in op.providers.values():
            file = code._file(provider.fn)
            if file in files:
                assert file in code.here().of(name)


def test_a_rule_over_stock_ops_depends_on_no_op() -> None:
    rules = load_rules("default")
    assert code.named(rules["silu"]) == ()
    assert code.code_digest(rules["silu"]) == code.here().digest(())
    assert code.named(rules["group-norm-silu"]) == ("group_norm_silu",)
    assert code.code_digest(rules["group-norm-silu"]) == code.here().digest(["group_norm_silu"])


def test_a_provider_of_others_counts(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = load_rules("default")["group-norm-silu"]
    own = code.code_digest(rule)
    module = tmp_path / "theirs_for_code.py"
    module.write_text("def kernel(*_): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    import theirs_for_code  # type: ignore[import-not-found]

    op = OPS["group_norm_silu"]
    provider = type(op.providers["torch"])(fn=theirs_for_code.kernel, supports=lambda *_: None)
    monkeypatch.setitem(op.providers, "theirs", provider)
    first = code.code_digest(rule)
    module.write_text("def kernel(*_): return 1\n")
    assert len({own, first, code.code_digest(rule)}) == 3
