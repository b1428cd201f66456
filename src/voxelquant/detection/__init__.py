"""CenterPoint: config, network, targets, losses, decoding, checkpoints."""
