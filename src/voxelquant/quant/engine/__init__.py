"""The planned engine: a lowered network as one sequence of GPU kernels without host work."""
