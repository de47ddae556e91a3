"""From a module call to a graph: arguments, outputs, module state, tracing, verification."""
