"""The loop of every training: steps, schedule, checkpoints, one process or many.

What is trained is a `Trainee`: float training and quantization-aware training differ in their loss
and in what happens around an optimiser step, and in nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from voxelquant.data.frame import Frame
from voxelquant.detection.config_training import ScheduleConfig
from voxelquant.errors import BadInputError
from voxelquant.recipes.data_parallel import average_batchnorm_statistics, replicate
from voxelquant.recipes.distributed import World
from voxelquant.recipes.progress import Advance
from voxelquant.recipes.read_ahead import read_ahead
from voxelquant.recipes.schedule import OneCycle
from voxelquant.recipes.training_batch import TrainingBatch
from voxelquant.recipes.training_source import TrainingSource
from voxelquant.recipes.training_state import save_training_state

CHECKPOINT_FILE = "checkpoint.safetensors"
Log = Callable[[dict[str, object]], None]
Predict = Callable[..., list[dict[str, Tensor]]]


@dataclass(frozen=True)
class TrainingRun:
    """What a run does beyond the config.

    Attributes:
        total_steps: optimisation steps of the whole schedule.
        batch_size: frames a step, of each process.
        seed: seed of initialisation and augmentation.
        work_dir: where checkpoints go.
        amp: bfloat16 autocast (the reference trains in fp32).
        checkpoint_every: steps between checkpoints.
        log_every: steps between log records.
        stop_after_s: leave cleanly, with a checkpoint, once this many seconds have passed.
        settings: what a resumed run must share with the one it continues, by name.
    """

    total_steps: int
    batch_size: int
    seed: int
    work_dir: Path
    amp: bool = False
    checkpoint_every: int = 500
    log_every: int = 20
    stop_after_s: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        """Where the state between two steps is kept."""
        return self.work_dir / CHECKPOINT_FILE


class Trainee:
    """A model in training with its optimiser.

    Args:
        model: what is trained; its modules and parameters stay the same ones.
        schedule: rates, moments, decay and clipping.

    Attributes:
        parameters: all of the model, listed once: a walk through its modules takes a step longer
            than what is done with them.
    """

    def __init__(self, model: nn.Module, schedule: ScheduleConfig) -> None:
        self.model = model
        self.schedule = schedule
        self.parameters = list(model.parameters())
        self._modules = list(model.modules())
        self.optimizer = self.build_optimizer()

    def build_optimizer(self) -> torch.optim.AdamW:
        """Adam with decoupled decay on every parameter, BN and biases included, as in det3d."""
        return adam([{"params": self.parameters}], self.schedule)

    def set_mode(self) -> None:
        """Bring every module into the mode in which it trains."""
        if not all(module.training for module in self._modules):  # asked sooner than set
            self.model.train()

    def predictor(self, world: World, batch_size: int) -> Predict:
        """What runs the model on batches of a size, in parallel with other processes or not."""
        return replicate(self.model, world)

    def prepare(self, frames: list[Frame]) -> TrainingBatch:
        """All that a step can know of its frames before its turn; reads no weight."""
        raise NotImplementedError

    def loss(self, predict: Predict, batch: TrainingBatch) -> Tensor:
        """Loss of a batch; `predict` runs the model."""
        raise NotImplementedError

    def before_update(self, step: int) -> None:
        """Called with gradients in place, before they are clipped."""

    def after_update(self, step: int, world: World) -> None:
        """Called when the optimiser has made its step."""


def adam(groups: Iterable[dict[str, Any]], schedule: ScheduleConfig) -> torch.optim.AdamW:
    """The optimiser of all trainings; a group's `lr_factor` multiplies the scheduled rate."""
    listed = list(groups)
    on_gpu = listed[0]["params"][0].is_cuda
    return torch.optim.AdamW(
        listed,
        lr=schedule.lr_max,
        betas=(schedule.moms[0], 0.99),
        weight_decay=schedule.weight_decay,
        fused=on_gpu,
    )


def run_steps(
    trainee: Trainee,
    source: TrainingSource,
    run: TrainingRun,
    *,
    first_step: int = 0,
    world: World,
    log: Log | None = None,
    progress: Advance | None = None,
) -> int:
    """Train from a step to the end of the schedule, or until time is up.

    Args:
        trainee: model, optimiser and loss; changed in place.
        source: augmented frames of every step, those of this process.
        run: length, batch, checkpoints.
        first_step: steps that are done already.
        world: the processes that train together; all of them call this.
        log: called with a flat record every `log_every` steps, in every process.
        progress: called with (steps done, steps of the schedule) after every step.

    Returns:
        The number of steps done, less than `total_steps` if time ran out.

    Raises:
        BadInputError: a gradient is not finite.
    """
    schedule = trainee.schedule
    cycle = OneCycle(
        run.total_steps, schedule.lr_max, schedule.moms, schedule.div_factor, schedule.pct_start
    )
    step = logged = first_step
    if step >= run.total_steps:
        return step
    predict = trainee.predictor(world, run.batch_size)
    started = window_start = time.perf_counter()
    prepared = map(trainee.prepare, source.batches(step, run.batch_size))
    with closing(read_ahead(prepared, world.device)) as batches:
        unseen: Outcome | None = None  # of the step before, which the GPU may still be at
        for batch in batches:
            lr = set_cycle(trainee.optimizer, cycle, step)
            outcome = launch_step(trainee, predict, batch, step, world)
            step += 1
            if unseen is not None:
                unseen.require_finite()
            unseen = outcome
            if progress is not None:
                progress(step, run.total_steps)
            last = step == run.total_steps or _time_is_up(run, started, world)
            logs = step % run.log_every == 0 or last
            saves = step % run.checkpoint_every == 0 or last
            if logs or saves:
                unseen.require_finite()
            if logs:
                mean_loss = float(world.mean(outcome.loss))
                seconds = time.perf_counter() - window_start
                frames_seen = (step - logged) * run.batch_size * world.shard.world_size
                if log is not None:
                    log(_record(step, lr, mean_loss, frames_seen / seconds))
                logged, window_start = step, time.perf_counter()
            if world.is_main and saves:
                save_training_state(
                    run.checkpoint, trainee.model, trainee.optimizer, step, run.settings
                )
            if last:
                break
    return step


def make_step(
    trainee: Trainee, predict: Predict, frames: list[Frame], step: int, world: World
) -> Tensor:
    """One optimisation step; returns this process's loss.

    Raises:
        BadInputError: a gradient is not finite.
    """
    outcome = launch_step(trainee, predict, trainee.prepare(frames), step, world)
    outcome.require_finite()
    return outcome.loss


class Outcome:
    """What came of a step, on its way to the host.

    Args:
        loss: of this process, `[]`.
        norm: of all gradients before they were clipped, `[]`.
    """

    def __init__(self, loss: Tensor, norm: Tensor) -> None:
        on_device = torch.stack((norm.detach().float(), loss.detach().float()))
        self.loss = on_device[1]  # a graph would overwrite its own
        self._values = on_device.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if on_device.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def require_finite(self) -> None:
        """Wait for the step, and refuse gradients that are not finite.

        Raises:
            BadInputError: they are not.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        norm, loss = self._values.tolist()
        if not math.isfinite(norm):
            raise BadInputError(
                f"got a gradient norm of {norm} and a loss of {loss}; lower lr_max, or "
                "train without amp"
            )


def launch_step(
    trainee: Trainee, predict: Predict, batch: TrainingBatch, step: int, world: World
) -> Outcome:
    """One optimisation step, which a GPU may still be at when this returns.

    zero_grad, forward, backward (gradients averaged over processes), clip the total norm, update.
    If a gradient is not finite, weights and moments stay: the outcome tells, and a NaN that went
    unseen would cost the whole run.

    Raises:
        BadInputError: a gradient is not finite, where the device is not ahead of the host.
    """
    trainee.set_mode()
    trainee.optimizer.zero_grad(set_to_none=True)
    loss = trainee.loss(predict, batch)
    loss.backward()
    trainee.before_update(step)
    norm = nn.utils.clip_grad_norm_(
        trainee.parameters, trainee.schedule.grad_clip_norm, foreach=True
    )
    outcome = Outcome(loss, norm)
    if norm.is_cuda:
        # A fused optimiser reads this on the GPU; for the host to decide, the GPU would stand idle.
        trainee.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
    else:
        outcome.require_finite()
    trainee.optimizer.step()
    trainee.after_update(step, world)
    average_batchnorm_statistics(trainee.model, world)
    return outcome


def set_cycle(optimizer: torch.optim.Optimizer, cycle: OneCycle, step: int) -> float:
    """Set learning rate and beta1 of a step; returns the rate."""
    lr, beta1 = cycle.at(step)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
        group["betas"] = (beta1, group["betas"][1])
    return lr


def _time_is_up(run: TrainingRun, started: float, world: World) -> bool:
    """Whether to leave now; clocks differ, and all processes have to leave together."""
    if run.stop_after_s is None:
        return False
    return world.any(time.perf_counter() - started > run.stop_after_s)


def _record(step: int, lr: float, loss: float, frames_per_s: float) -> dict[str, object]:
    return {"step": step, "lr": lr, "loss": loss, "frames_per_s": round(frames_per_s, 2)}
