from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from voxelquant.errors import CheckpointError
from voxelquant.recipes.training_state import load_training_state, save_training_state


def small_run() -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.99))


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


def test_a_resumed_run_ends_bit_equal_to_one_never_stopped(tmp_path: Path) -> None:
    whole, optimizer = small_run()
    advance(whole, optimizer, 0, 10)

    stopped, optimizer = small_run()
    advance(stopped, optimizer, 0, 4)
    save_training_state(tmp_path / "c.safetensors", stopped, optimizer, 4)
    resumed, optimizer = small_run()
    step = load_training_state(tmp_path / "c.safetensors", resumed, optimizer)
    assert step == 4
    advance(resumed, optimizer, step, 10)

    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    model, optimizer = small_run()
    save_training_state(tmp_path / "c.safetensors", model, optimizer, 1)
    other = nn.Linear(5, 5)
    other_optimizer = torch.optim.AdamW(other.parameters())
    with pytest.raises(CheckpointError, match="another model"):
        load_training_state(tmp_path / "c.safetensors", other, other_optimizer)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x10\0\0\0\0\0\0\0{}"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(content)
    model, optimizer = small_run()
    with pytest.raises(CheckpointError, match="not a training checkpoint"):
        load_training_state(path, model, optimizer)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    model, optimizer = small_run()
    with pytest.raises(CheckpointError, match="start without resuming"):
        load_training_state(tmp_path / "none.safetensors", model, optimizer)


class Shared(nn.Module):
    """A module under two names, as a range is shared by all that read its tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = self.first
        self.last = nn.Linear(2, 2)


def test_what_is_shared_is_written_once_and_stays_shared(tmp_path: Path) -> None:
    path, model = tmp_path / "c.safetensors", Shared()
    save_training_state(path, model, torch.optim.AdamW(model.parameters()), 1)
    assert [name for name in load_file(path) if "second" in name] == []
    other = Shared()
    load_training_state(path, other, torch.optim.AdamW(other.parameters()))
    assert other.second is other.first
    assert torch.equal(other.second.weight, model.first.weight)


def test_moments_find_their_parameters_in_groups_of_any_order(tmp_path: Path) -> None:
    def grouped(model: nn.Module) -> torch.optim.AdamW:
        weights = [p for name, p in model.named_parameters() if "weight" in name]
        biases = [p for name, p in model.named_parameters() if "bias" in name]
        return torch.optim.AdamW([{"params": biases}, {"params": weights, "lr_factor": 3.0}])

    path, (model, _) = tmp_path / "c.safetensors", small_run()
    optimizer = grouped(model)
    advance(model, optimizer, 0, 3)
    save_training_state(path, model, optimizer, 3)
    other, _ = small_run()
    restored = grouped(other)
    load_training_state(path, other, restored)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state[ours].items():
            assert torch.equal(value, restored.state[theirs][key]), key
    assert restored.param_groups[1]["lr_factor"] == 3.0


def test_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    path, (model, optimizer) = tmp_path / "c.safetensors", small_run()
    save_training_state(path, model, optimizer, 7, {"steps": 20, "data": None})
    load = (path, model, optimizer)
    assert load_training_state(*load, {"steps": 20, "data": None}) == 7
    with pytest.raises(CheckpointError, match="got steps 30, the run to resume has 20"):
        load_training_state(*load, {"steps": 30})
