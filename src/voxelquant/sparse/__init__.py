"""Sparse tensors and convolutions: voxels, never cars."""
