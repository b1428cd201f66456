"""The scripts of the reference workflow under their own names and flags, over voxelquant's verbs.

`tools/centerpoint_eval.py`, `tools/centerpoint_qat_pipline.py` and `onnx_export/export-scn.py`
hold nothing but a call of a command below. Flags keep their spelling, mistakes included; a
hyphen and an underscore are taken for each other, since torch's launchers pass either.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from voxelquant.cli import BAD_INPUT_EXIT_CODE, main

if TYPE_CHECKING:
    from voxelquant.recipes.workflow import WorkflowSettings

_PATH = click.Path(path_type=Path)


class _EitherSpelling(click.Command):
    """Takes `--local-rank` for `--local_rank`, as argparse-based launchers differ in it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Bring the name of each option into the spelling that is declared."""
        declared = {name.replace("_", "-"): name for option in self.params for name in option.opts}
        spelled = []
        for argument in args:
            name, equals, value = argument.partition("=")
            spelled.append(declared.get(name.replace("_", "-"), name) + equals + value)
        return super().parse_args(ctx, spelled)


def run_verb(*arguments: object) -> None:
    """Run a verb as the command line does; one that is refused ends the script with its code."""
    given = [str(argument) for argument in arguments if argument is not None]
    code = main(given, prog_name="voxelquant", standalone_mode=False)
    if isinstance(code, int) and code != 0:
        raise SystemExit(code)


def run_script(command: click.Command) -> None:
    """Run one of the commands below as a program; bad usage is one line and exit code 2."""
    try:
        command.main(standalone_mode=False)
    except click.UsageError as error:
        click.echo(f"{Path(sys.argv[0]).name}: {error.format_message()}", err=True)
        raise SystemExit(BAD_INPUT_EXIT_CODE) from None


@click.group()
def centerpoint_eval() -> None:
    """Score a CenterPoint, or profile how sensitive its layers are to quantization."""


@centerpoint_eval.command("test", cls=_EitherSpelling)
@click.option("--nuScense-config", "config", required=True, help="A CenterPoint config.")
@click.option("--weight", required=True, type=_PATH, help="Float weights, or a ptq.pth or qat.pth.")
@click.option("--use-quantization", is_flag=True, help="Fake-quantized, for ptq.pth and qat.pth.")
@click.option("--work_dir", type=_PATH, help="Default: work_dirs/test_NAME OF THE WEIGHTS.")
def _test(config: str, weight: Path, use_quantization: bool, work_dir: Path | None) -> None:
    """Print the nuScenes metrics on the validation split."""
    engine = "fake" if use_quantization else "float"
    work_dir = work_dir or Path("work_dirs") / f"test_{weight.stem}"
    run_verb("eval", config, "--weights", weight, "--engine", engine, "--work-dir", work_dir)


@centerpoint_eval.command("sensitivity", cls=_EitherSpelling)
@click.option("--nuScense-config", "config", required=True, help="A CenterPoint config.")
@click.option("--weight", required=True, type=_PATH, help="Float weights.")
@click.option("--calibrate_batch", default=400, show_default=True, type=click.IntRange(min=1))
@click.option("--eval-origin", is_flag=True, help="The float model is always scored: no effect.")
@click.option("--work_dir", type=_PATH, help="Default: work_dirs/sensitivity_NAME OF THE WEIGHTS.")
def _sensitivity(
    config: str, weight: Path, calibrate_batch: int, eval_origin: bool, work_dir: Path | None
) -> None:
    """Quantize one layer at a time and print what each costs."""
    batch_size = _settings(config).batch_size
    work_dir = work_dir or Path("work_dirs") / f"sensitivity_{weight.stem}"
    run_verb(
        "sensitivity", config, "--weights", weight, "--work-dir", work_dir,
        "--calibrate-batches", calibrate_batch, "--batch-size", batch_size,
    )  # fmt: skip


@click.command(cls=_EitherSpelling)
@click.argument("config")
@click.option("--work_dir", type=_PATH, help="Default: work_dirs/NAME OF THE CONFIG.")
@click.option("--resume_from", required=True, type=_PATH, help="Float weights to start from.")
@click.option("--calibrate_batch", default=300, show_default=True, type=click.IntRange(min=1))
@click.option("--ptq_mode", is_flag=True, help="Stop after calibration, with ptq.pth.")
@click.option("--validate", is_flag=True, help="Score what was made.")
@click.option("--gpus", default=1, type=click.IntRange(min=1), help="Only 1: more with torchrun.")
@click.option("--seed", default=0, type=click.IntRange(min=0))
@click.option("--launcher", default="pytorch", type=click.Choice(["pytorch", "slurm"]))
@click.option("--local_rank", default=0, type=int, help="Passed by launchers.")
@click.option("--autoscale-lr", is_flag=True, help="Multiply lr_max by the number of processes.")
def centerpoint_qat_pipline(**options: Any) -> None:
    """Calibrate CONFIG's detector to int8 and, without --ptq_mode, fine-tune it quantized."""
    _Pipeline(**options).run()


@click.command(cls=_EitherSpelling)
@click.option("--ckpt", required=True, type=_PATH, help="Float .pth, ptq.pth or qat.pth.")
@click.option("--save-onnx", required=True, type=_PATH, help="File to write.")
@click.option("--in-channel", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--input", "example", type=_PATH, help="Pickle of voxels; default: a built-in frame.")
@click.option("--save-tensor", help="Prefix of dumps of the example and its output.")
@click.option("--use-quantization", is_flag=True, help="For ptq.pth and qat.pth.")
def export_scn(
    ckpt: Path,
    save_onnx: Path,
    in_channel: int,
    example: Path | None,
    save_tensor: str | None,
    use_quantization: bool,
) -> None:
    """Write the sparse backbone of a checkpoint as a libspconv file; no config is needed."""
    from voxelquant.errors import BadInputError
    from voxelquant.recipes.progress import StageReporter
    from voxelquant.recipes.scn_export import ScnExportRequest, run_scn_export

    request = ScnExportRequest(ckpt, save_onnx, use_quantization, in_channel, example, save_tensor)
    try:
        for defect in run_scn_export(request, StageReporter()):
            click.echo(defect)
    except BadInputError as error:
        raise click.UsageError(" ".join(str(error).split())) from error
    click.echo(save_onnx)


@dataclass(frozen=True)
class _Pipeline:
    """One call of `centerpoint_qat_pipline.py`."""

    config: str
    work_dir: Path | None
    resume_from: Path
    calibrate_batch: int
    ptq_mode: bool
    validate: bool
    gpus: int
    seed: int
    launcher: str
    local_rank: int
    autoscale_lr: bool

    def run(self) -> None:
        """Calibrate, or calibrate and train; the result is left in both formats."""
        if self.gpus > 1:
            raise click.UsageError(
                f"got --gpus {self.gpus} for one process, need one process for each GPU; start "
                f"with torchrun --nproc-per-node {self.gpus}"
            )
        if self.launcher == "slurm":
            join_slurm_job()
        os.environ.setdefault("LOCAL_RANK", str(self.local_rank))
        folder = self.work_dir or Path("work_dirs") / Path(self.config).stem
        verb = "ptq" if self.ptq_mode else "qat"
        settings = _settings(self.config)
        is_main = int(os.environ.get("RANK", "0")) == 0
        if settings.note and not self.ptq_mode and is_main:
            click.echo(settings.note, err=True)
        # The ranges of the reference's layout: what is trained and scored is what the .pth holds.
        recipe = ("--recipe", "nvidia")
        common = (self.config, "--weights", self.resume_from, "--work-dir", folder, *recipe)
        batch_size = settings.batch_size
        if self.ptq_mode:
            batches = ("--calibrate-batches", self.calibrate_batch, "--batch-size", batch_size)
            run_verb("ptq", *common, *batches)
        else:
            scale = int(os.environ.get("WORLD_SIZE", "1")) if self.autoscale_lr else 1
            # `qat` calibrates on batches of one frame: as many frames as the reference's batches.
            frames = ("--calibrate-batches", self.calibrate_batch * batch_size)
            resume = ("--resume",) if _was_broken_off(folder) else ()
            rate = ("--lr-max", settings.lr_max * scale)
            run_verb("qat", *common, *frames, "--seed", self.seed, *rate, *resume)
        state = folder / f"{verb}.safetensors"
        if is_main:
            run_verb("export", self.config, "--weights", state, "--out", folder / f"{verb}.pth")
        if self.validate:
            run_verb("eval", self.config, "--weights", state, "--engine", "fake",
                     "--work-dir", folder / "eval")  # fmt: skip


def _was_broken_off(folder: Path) -> bool:
    from voxelquant.recipes.workflow import was_broken_off

    return was_broken_off(folder)


def _settings(config: str) -> WorkflowSettings:
    """Batch size and rate of a config; one that cannot be used ends the script."""
    # Imported late: recipes import torch, which `--help` need not wait for.
    from voxelquant.errors import BadInputError
    from voxelquant.recipes.workflow import workflow_settings

    try:
        return workflow_settings(config)
    except BadInputError as error:
        raise click.UsageError(" ".join(str(error).split())) from error


def join_slurm_job() -> None:
    """Give the processes of an `srun` the variables that torchrun would give them.

    Raises:
        click.UsageError: this is no task of a Slurm job.
    """
    given = {
        "RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID",
    }  # fmt: skip
    missing = [name for name in (*given.values(), "SLURM_NODELIST") if name not in os.environ]
    if missing:
        raise click.UsageError(
            f"got --launcher slurm without {missing[0]} in the environment, need a task of a Slurm "
            "job; start with srun, or give --launcher pytorch"
        )
    for name, source in given.items():
        os.environ[name] = os.environ[source]
    os.environ.setdefault("MASTER_PORT", "29501")
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = _first_host(os.environ["SLURM_NODELIST"])


def _first_host(nodes: str) -> str:
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise click.UsageError(
            f"got no host names from `{' '.join(command)}` ({error}); set MASTER_ADDR to the host "
            "of the first task"
        ) from error
    return listed.stdout.split()[0]
