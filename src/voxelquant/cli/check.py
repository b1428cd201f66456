"""`voxelquant check`."""

from pathlib import Path

import click

from voxelquant.plural import counted


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def command(file: Path) -> None:
    """Validate an exported ONNX FILE; every defect is named with its node and a mend."""
    from voxelquant.recipes.export import check_exported, require_no_errors

    defects = check_exported(file)
    for defect in defects:
        colour = "red" if defect.severity == "error" else "yellow"
        click.echo(
            f"{click.style(defect.severity, fg=colour)} {click.style(defect.node, bold=True)}"
        )
        click.echo(f"  {defect.message}\n  → {defect.mend} [{defect.rule}]")
    require_no_errors(file, defects)
    warned = counted(len(defects), "warning") if defects else "no warnings"
    click.echo(f"{file}: {warned}, no errors")
