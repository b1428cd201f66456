"""Checkpoints of a training run: one safetensors file, nothing pickled, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from voxelquant.atomic_file import atomic_path
from voxelquant.errors import CheckpointError


def save_training_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Write weights, optimiser moments and the step count."""
    tensors = {f"model.{k}": v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    for name, state in _states_by_name(model, optimizer).items():
        for key, value in state.items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value).cpu().contiguous()
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step)})


def load_training_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore weights and moments; returns the number of steps done.

    Raises:
        CheckpointError: no such file, not a checkpoint of ours, or of another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            step = int((file.metadata() or {})["step"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a training checkpoint ({error}); start without resuming"
        ) from None
    weights = _strip(tensors, "model.")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()[:160]  # the first line names the class alone
        raise CheckpointError(f"{path}: of another model ({reason})") from None
    _restore_moments(model, optimizer, tensors)
    return step


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _states_by_name(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, Tensor]]:
    named = model.named_parameters()
    return {name: optimizer.state[weight] for name, weight in named if weight in optimizer.state}


def _restore_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    state = {}
    for index, (name, parameter) in enumerate(model.named_parameters()):
        entry = {
            key: tensors[f"optimizer.{key}.{name}"].to(parameter.device)
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"optimizer.{key}.{name}" in tensors
        }
        if entry:
            state[index] = entry
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
