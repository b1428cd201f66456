"""The reference's script of this name: its flags, over voxelquant's verbs."""

from voxelquant.cli.reference_scripts import export_scn, run_script

if __name__ == "__main__":
    run_script(export_scn)
