"""`run_demo` draws the same pictures eagerly and optimised and writes them down with times, matches and errors."""

from rewriter.demo.result import DemoResult
from rewriter.demo.runner import run_demo

__all__ = ["DemoResult", "run_demo"]
