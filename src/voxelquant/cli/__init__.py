"""The command line: one thin file per verb, each of which calls a recipe.

A verb is loaded when it is asked for, so `--help` stays fast; its file defines `command`.
"""

import contextlib
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

from voxelquant import __version__
from voxelquant.errors import (
    AnotherProcessFailedError,
    BadInputError,
    MissingDependencyError,
)
from voxelquant.recipes.rank import is_main_process

# GNU OpenMP spins while it waits. Where another process holds a core, every parallel region of
# torch then waits for the scheduler: 8 ms instead of 0.04 ms, measured with two cores, one busy.
# It is read when torch is first imported, and no verb imports torch before this line.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# In the order of the work, which is the order of `voxelquant --help`.
VERBS = (
    "demo",
    "synth",
    "train",
    "ptq",
    "qat",
    "eval",
    "sensitivity",
    "export",
    "check",
    "parity",
    "bench",
    "report",
    "doctor",
)

BAD_INPUT_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130


class VerbGroup(click.Group):
    """Loads verbs on demand and turns what the user can mend into one line and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the order of the work."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, or None for a name that is no verb."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"voxelquant.cli.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; every exception but those the user can mend keeps its traceback.

        Of several processes the first prints the results, and the one that failed first its error.
        """
        try:
            with _results_of_the_main_process():
                return super().invoke(ctx)
        except AnotherProcessFailedError:
            # torchrun sends SIGTERM to all when one is gone; this one is about to leave by itself.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            ctx.exit(BAD_INPUT_EXIT_CODE)
        except (BadInputError, MissingDependencyError) as error:
            _say_in_one_line(ctx, str(error))
        except click.UsageError as error:
            if not is_main_process():  # all processes were given the same arguments
                ctx.exit(BAD_INPUT_EXIT_CODE)
            advice = f"; see {error.ctx.command_path} --help" if error.ctx is not None else ""
            _say_in_one_line(ctx, error.format_message().rstrip(".") + advice)
        except KeyboardInterrupt:
            click.echo("voxelquant: interrupted", err=True)
            ctx.exit(INTERRUPTED_EXIT_CODE)


@contextlib.contextmanager
def _results_of_the_main_process() -> Iterator[None]:
    if is_main_process():
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _say_in_one_line(ctx: click.Context, message: str) -> NoReturn:
    line = " ".join(message.split())
    click.echo(f"voxelquant: {line}", err=True)
    # torchrun prints a page about every process that fails; this puts the line at its end.
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file is not None:
        extra = {"timestamp": str(int(time.time()))}
        content = {"message": {"message": line, "extraInfo": extra}}
        Path(error_file).write_text(json.dumps(content), encoding="utf-8")
    ctx.exit(BAD_INPUT_EXIT_CODE)


@click.group(cls=VerbGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="voxelquant")
def main() -> None:
    """Quantize sparse-convolution LiDAR detectors, prove what it cost, run them in integers."""
