"""Train a CenterPoint detector with the reference's optimiser and one-cycle schedule."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from voxelquant.data.frame import Frame
from voxelquant.detection.config import DetectorConfig
from voxelquant.detection.detector import CenterPoint
from voxelquant.detection.losses import LossTerms, centerpoint_loss
from voxelquant.detection.targets import assign_targets_batch
from voxelquant.errors import BadInputError
from voxelquant.recipes.schedule import OneCycle
from voxelquant.recipes.training_source import TrainingSource
from voxelquant.recipes.training_state import load_training_state, save_training_state

Log = Callable[[dict[str, object]], None]


@dataclass(frozen=True)
class TrainingRun:
    """What a run does beyond the config.

    Attributes:
        total_steps: optimisation steps of the whole schedule.
        batch_size: frames a step.
        seed: seed of initialisation and augmentation.
        device: where the model lives.
        amp: bfloat16 autocast (the reference trains in fp32).
        work_dir: where checkpoints go.
        checkpoint_every: steps between checkpoints.
        log_every: steps between log records.
        stop_after_s: leave cleanly, with a checkpoint, once this many seconds have passed.
    """

    total_steps: int
    batch_size: int
    seed: int
    device: str
    work_dir: Path
    amp: bool = False
    checkpoint_every: int = 500
    log_every: int = 20
    stop_after_s: float | None = None


def train(
    config: DetectorConfig,
    source: TrainingSource,
    run: TrainingRun,
    *,
    resume: bool = False,
    log: Log | None = None,
) -> tuple[CenterPoint, int]:
    """Train from scratch, or from the last checkpoint in the work dir.

    Args:
        config: detector and training settings.
        source: augmented frames of every step.
        run: length, batch, seed, device, checkpoints.
        resume: continue from `work_dir/checkpoint.safetensors`.
        log: called with a flat record every `log_every` steps.

    Returns:
        The model and the number of steps done, less than `total_steps` if time ran out.

    Raises:
        BadInputError: the loss is not finite.
        CheckpointError: the checkpoint to resume from is missing or of another model.
    """
    torch.manual_seed(run.seed)
    model = CenterPoint(config).to(run.device)
    optimizer = build_optimizer(model, config)
    checkpoint = run.work_dir / "checkpoint.safetensors"
    step = load_training_state(checkpoint, model, optimizer) if resume else 0
    schedule = config.train.schedule
    cycle = OneCycle(
        run.total_steps, schedule.lr_max, schedule.moms, schedule.div_factor, schedule.pct_start
    )
    started = window_start = time.perf_counter()
    logged = step
    for frames in source.batches(step, run.batch_size):
        if step >= run.total_steps:
            break
        lr = set_cycle(optimizer, cycle, step)
        terms = train_step(model, optimizer, frames, config, run)
        step += 1
        seconds = time.perf_counter() - started
        last = step == run.total_steps or (
            run.stop_after_s is not None and seconds > run.stop_after_s
        )
        if log is not None and (step % run.log_every == 0 or last):
            window_s = time.perf_counter() - window_start
            log(_record(step, lr, terms, (step - logged) * run.batch_size / window_s))
            logged, window_start = step, time.perf_counter()
        if step % run.checkpoint_every == 0 or last:
            save_training_state(checkpoint, model, optimizer, step)
        if last:
            break
    return model, step


def build_optimizer(model: nn.Module, config: DetectorConfig) -> torch.optim.AdamW:
    """Adam with decoupled decay on every parameter, BN and biases included, as det3d runs it."""
    schedule = config.train.schedule
    on_gpu = next(model.parameters()).is_cuda
    return torch.optim.AdamW(
        model.parameters(),
        lr=schedule.lr_max,
        betas=(schedule.moms[0], 0.99),
        weight_decay=schedule.weight_decay,
        fused=on_gpu,
    )


def set_cycle(optimizer: torch.optim.Optimizer, cycle: OneCycle, step: int) -> float:
    """Set learning rate and beta1 of a step; returns the rate."""
    lr, beta1 = cycle.at(step)
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["betas"] = (beta1, group["betas"][1])
    return lr


def train_step(
    model: CenterPoint,
    optimizer: torch.optim.Optimizer,
    frames: list[Frame],
    config: DetectorConfig,
    run: TrainingRun,
) -> LossTerms:
    """One optimisation step: zero_grad, forward, backward, clip the total norm, step."""
    model.train()
    optimizer.zero_grad(set_to_none=True)
    terms = detection_loss(model, frames, config, amp=run.amp)
    terms.total.backward()
    norm = nn.utils.clip_grad_norm_(
        model.parameters(), config.train.schedule.grad_clip_norm, foreach=True
    )
    # One synchronisation a step; a NaN that goes unseen would cost the whole run.
    if not bool(torch.isfinite(norm)):
        raise BadInputError(
            f"got a gradient norm of {norm.item()} and a loss of {terms.total.item()}; lower "
            "lr_max, or train without amp"
        )
    optimizer.step()
    return terms


def detection_loss(
    model: CenterPoint, frames: list[Frame], config: DetectorConfig, *, amp: bool
) -> LossTerms:
    """Loss of a batch of labelled frames."""
    clouds = [frame.points for frame in frames]
    boxes = [_require(frame.boxes_det3d, frame.token) for frame in frames]
    labels = [_require(frame.labels, frame.token) for frame in frames]
    targets = assign_targets_batch(boxes, labels, config.head_spec)
    x = model.read_clouds(clouds, train=True)
    with torch.autocast(clouds[0].device.type, dtype=torch.bfloat16, enabled=amp):
        predictions = model(x)
    # Losses in float32: exp, log and sums over whole maps lose too much in bfloat16.
    predictions = [{k: v.float() for k, v in task.items()} for task in predictions]
    return centerpoint_loss(predictions, targets, config.head_spec)


def _require(value: Tensor | None, token: str) -> Tensor:
    if value is None:
        raise BadInputError(f"frame {token} has no annotations; train on an annotated split")
    return value


def _record(step: int, lr: float, terms: LossTerms, frames_per_s: float) -> dict[str, object]:
    return {
        "step": step,
        "lr": lr,
        "loss": float(terms.total.detach()),
        "frames_per_s": round(frames_per_s, 2),
    }
