"""CUDA sources of the `cuda` providers, compiled by `rewriter.ops.cuda.build`."""
