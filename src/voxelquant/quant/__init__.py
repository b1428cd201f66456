"""Quantization of networks built of sparse convolutions: layers, never detectors."""
