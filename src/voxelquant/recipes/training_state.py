"""Checkpoints of a training run: one safetensors file, nothing pickled, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from voxelquant.atomic_file import atomic_path
from voxelquant.errors import CheckpointError
from voxelquant.plural import counted


def save_training_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write weights, ranges, optimiser moments, the step count, and what a resume must not change.

    Args:
        path: target.
        model: what is trained; a tensor that it holds under several names is written once.
        optimizer: of the model's parameters.
        step: steps done.
        settings: plain JSON values by name, such as the length of the schedule.
    """
    tensors = {
        f"model.{key}": value.detach().cpu().contiguous()
        for key, value in model.state_dict().items()
        if key == _first_names(model)[key]
    }
    for name, state in _states_by_name(model, optimizer).items():
        for key, value in state.items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value).cpu().contiguous()
    metadata = {"step": str(step), "settings": json.dumps(dict(settings or {}))}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_training_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any] | None = None,
) -> int:
    """Restore weights, ranges and moments; returns the number of steps done.

    Raises:
        CheckpointError: no such file, not a checkpoint of ours, of another model, or of a run with
            other settings.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            step, stored = int(header["step"]), json.loads(header.get("settings", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a training checkpoint ({error}); start without resuming"
        ) from None
    _check_settings(path, stored, dict(settings or {}))
    weights = _strip(tensors, "model.")
    shared = {key: first for key, first in _first_names(model).items() if first in weights}
    try:
        model.load_state_dict(weights | {key: weights[first] for key, first in shared.items()})
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()[:160]  # the first line names the class alone
        raise CheckpointError(f"{path}: of another model ({reason})") from None
    _restore_moments(model, optimizer, tensors)
    return step


def refuse_to_lose(path: Path) -> None:
    """Refuse to start anew over the checkpoint of a run that was broken off.

    Raises:
        CheckpointError: there is one.
    """
    progress = unfinished_steps(path)
    if progress is not None:
        done, total = progress
        raise CheckpointError(
            f"{path}: got a run that stopped after {done} of {counted(total, 'step')}; go on with "
            "--resume, choose another --work-dir, or delete the file"
        )


def unfinished_steps(path: Path) -> tuple[int, int] | None:
    """Steps done and steps of the schedule of a run that was broken off; None if there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        done, total = int(header["step"]), int(json.loads(header["settings"])["steps"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None  # nothing that could be resumed
    return (done, total) if done < total else None


def _check_settings(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if name in stored and stored[name] != value:
            raise CheckpointError(
                f"{path}: got {name} {value}, the run to resume has {stored[name]}; give the same, "
                "or start anew in another folder"
            )


def _first_names(model: nn.Module) -> dict[str, str]:
    """Key of the state dict → the first key that holds the same tensor."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {key: first.setdefault(id(value), key) for key, value in state.items()}


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
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    # An optimiser counts its parameters group by group.
    ordered = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = {}
    for index, parameter in enumerate(ordered):
        stored = {
            key: tensors[f"optimizer.{key}.{names[id(parameter)]}"]
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"optimizer.{key}.{names[id(parameter)]}" in tensors
        }
        entry = {key: _as_beside(parameter, value) for key, value in stored.items()}
        if entry:
            state[index] = entry
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _as_beside(parameter: Tensor, value: Tensor) -> Tensor:
    """On the parameter's device, and in its order of memory: a fused optimiser needs them alike."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
