"""Triton kernels: the fast execution on GPUs. Imported on use only; the package needs no Triton."""
