"""The proof of a rule from its own entry: drawn inputs, the pattern as the reference program, the rewritten program."""
