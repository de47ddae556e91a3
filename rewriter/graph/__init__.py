"""The rewriting engine: a mirror of a traced graph, facts about its values, a matcher, and proved rewriting."""
