"""The rule language: YAML files to checked rules."""

from rewriter.language.loader import load_rules
from rewriter.language.rule import Rule, RuleSet

__all__ = ["Rule", "RuleSet", "load_rules"]
