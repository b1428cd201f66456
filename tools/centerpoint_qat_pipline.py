"""The reference's script of this name: its flags, over voxelquant's verbs."""

from voxelquant.cli.reference_scripts import centerpoint_qat_pipline, run_script

if __name__ == "__main__":
    run_script(centerpoint_qat_pipline)
