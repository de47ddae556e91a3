"""Makes diffusers pipelines fast by rewriting their traced graphs with rules that people can read.

pipe = rewriter.optimize(pipe)      # in place; captures on first use
print(rewriter.report(pipe))        # what matched where, what did not and why
rewriter.restore(pipe)              # exactly as before
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewriter.errors import CaptureError, RewriterError, RuleError, UnsupportedTorch, VerificationError
    from rewriter.language import RuleSet, load_rules
    from rewriter.runtime.explanation import Explanation, explain
    from rewriter.runtime.journal import RewriterWarning
    from rewriter.runtime.report import ComponentReport, Report, report
    from rewriter.runtime.session import optimize, restore
    from rewriter.runtime.warmup import warmup

__version__ = "0.1.0"

# Importing the package must cost next to nothing; each name brings its module when it is first used.
_HOMES = {
    "optimize": "rewriter.runtime.session",
    "restore": "rewriter.runtime.session",
    "warmup": "rewriter.runtime.warmup",
    "report": "rewriter.runtime.report",
    "Report": "rewriter.runtime.report",
    "ComponentReport": "rewriter.runtime.report",
    "explain": "rewriter.runtime.explanation",
    "Explanation": "rewriter.runtime.explanation",
    "load_rules": "rewriter.language",
    "RuleSet": "rewriter.language",
    "RewriterError": "rewriter.errors",
    "RuleError": "rewriter.errors",
    "CaptureError": "rewriter.errors",
    "VerificationError": "rewriter.errors",
    "UnsupportedTorch": "rewriter.errors",
    "RewriterWarning": "rewriter.runtime.journal",
}

__all__ = [
    "CaptureError",
    "ComponentReport",
    "Explanation",
    "Report",
    "RewriterError",
    "RewriterWarning",
    "RuleError",
    "RuleSet",
    "UnsupportedTorch",
    "VerificationError",
    "__version__",
    "explain",
    "load_rules",
    "optimize",
    "report",
    "restore",
    "warmup",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rewriter' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
