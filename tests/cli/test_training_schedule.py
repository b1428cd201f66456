"""What the optimiser is told in each step of `voxelquant train`, against the written schedule."""

import math
from pathlib import Path

import pytest
import torch
import yaml

from voxelquant.detection.config import load_config
from voxelquant.detection.detector import CenterPoint

STEPS, CLIP = 10, 0.5


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """One entry a step: rate, betas, decay, values held, and the norm of all gradients."""
    entries: list[dict] = []

    class Recorder(torch.optim.AdamW):
        def step(self, *args: object, **kwargs: object) -> object:
            held = [p for group in self.param_groups for p in group["params"]]
            gradients = torch.cat([p.grad.flatten() for p in held])
            entries.append(
                {
                    "lr": {group["lr"] for group in self.param_groups},
                    "betas": {group["betas"] for group in self.param_groups},
                    "decay": {group["weight_decay"] for group in self.param_groups},
                    "amsgrad": {group["amsgrad"] for group in self.param_groups},
                    "n_values": sum(p.numel() for p in held),
                    "norm": float(gradients.double().norm()),
                }
            )
            return super().step(*args, **kwargs)

    monkeypatch.setattr(torch.optim, "AdamW", Recorder)
    return entries


def half_cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


def test_every_step_follows_the_published_schedule(
    tmp_path: Path, done, config: Path, data: Path, recorded: list[dict]
) -> None:
    values = yaml.safe_load(config.read_text())
    values["train"]["schedule"] |= {"lr_max": 1e-3, "grad_clip_norm": CLIP}
    clipped = tmp_path / "clipped.yaml"
    clipped.write_text(yaml.safe_dump(values))
    train = ("train", clipped, "--data", data, "--steps", STEPS, "--batch-size", 1)
    done(*train, "--work-dir", tmp_path / "run")
    assert len(recorded) == STEPS
    n_values = sum(p.numel() for p in CenterPoint(load_config(clipped)).parameters())
    for step, entry in enumerate(recorded):
        if step < 4:  # int(0.4 * 10) steps up, from a tenth of the highest rate
            lr = half_cosine(1e-4, 1e-3, step / 4)
            beta1 = half_cosine(0.95, 0.85, step / 4)
        else:
            lr = half_cosine(1e-3, 1e-8, (step - 4) / 6)
            beta1 = half_cosine(0.85, 0.95, (step - 4) / 6)
        (got_lr,), ((got_beta1, beta2),) = entry["lr"], entry["betas"]
        assert got_lr == pytest.approx(lr, rel=1e-9)
        assert (got_beta1, beta2) == (pytest.approx(beta1, rel=1e-9), 0.99)
        assert entry["decay"] == {0.01}  # of every parameter, batch norms and biases too
        assert entry["amsgrad"] == {False}
        assert entry["n_values"] == n_values
        # All of these steps have larger gradients: clipped to the norm before the step.
        assert entry["norm"] == pytest.approx(CLIP, rel=1e-4)
