"""`voxelquant doctor`."""

import click


@click.command()
def command() -> None:
    """Say what this machine can run, and what to install."""
    from voxelquant.recipes.doctor import examine_machine

    for finding in examine_machine():
        mark = click.style("✓", fg="green") if finding.fine else click.style("!", fg="yellow")
        click.echo(f"{mark} {finding.subject:<18}{finding.found}")
        if finding.advice is not None:
            click.echo(f"  {'':<18}→ {finding.advice}")
