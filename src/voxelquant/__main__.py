"""`python -m voxelquant`, and so `torchrun -m voxelquant`."""

from voxelquant.cli import main

if __name__ == "__main__":
    main(prog_name="voxelquant")
