"""Load trained weights into a detector, and save them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from voxelquant.atomic_file import atomic_path
from voxelquant.detection.checkpoint_files import (
    find_state_dict,
    read_safetensors,
    read_torch_file,
)
from voxelquant.detection.checkpoint_layout import choose_layout, describe_foreign, det3d_names
from voxelquant.detection.nvidia_layout import is_nvidia_checkpoint
from voxelquant.detection.sharded_weights import (
    index_of_shard,
    is_index,
    read_shards,
    require_room,
    save_shards,
)
from voxelquant.errors import CheckpointError
from voxelquant.sparse import SparseConvBase

_COUNTER = "num_batches_tracked"
_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class LoadReport:
    """What was found in a weight file.

    Attributes:
        path: the file.
        n_tensors: tensors that were loaded.
        layout: layout of the sparse weights in the file.
        notes: what a reader of the log should know: ambiguities, names that were mended.
        metadata: header of our safetensors files; empty for torch files.
    """

    path: Path
    n_tensors: int
    layout: str
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


def load_weights(
    model: nn.Module, path: str | Path, *, leave_aside: tuple[str, ...] = ()
) -> LoadReport:
    """Load weights strictly; the model is changed only if everything fits.

    Reads our safetensors, the index of several (`*.safetensors.index.json`), and det3d's `.pth`
    (`{meta, state_dict, optimizer}` or a bare state dict), of spconv 1.x or 2.x. Nothing that a
    file holds is executed.

    Args:
        model: a `CenterPoint`, or any model built of the sparse modules.
        path: the weight file.
        leave_aside: prefixes of tensors that the model does not have and need not.

    Raises:
        CheckpointError: unreadable or unsafe file, weights of another model, or NaN or infinite
            values; one line that names the tensor.
    """
    path = Path(path)
    metadata: dict[str, str] = {}
    if is_index(path):
        stored, metadata = read_shards(path)
    elif path.suffix == ".safetensors":
        stored, metadata = read_safetensors(path)
    else:
        stored = find_state_dict(read_torch_file(path), path)
    weights = {
        name: value
        for name, value in det3d_names(stored).items()
        if not name.startswith(leave_aside)
    }
    notes = []
    if any(".middle_conv." in name for name in stored):
        notes.append("old names `backbone.middle_conv.*` were mapped to today's")
    expected = model.state_dict()
    try:
        _check_names(weights, expected)
        layout, alternatives = _bring_into_layout(weights, model)
        loaded = {
            name: checked_tensor(name, weights.get(name), value) for name, value in expected.items()
        }
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {_with_shard_in_mind(path, error)}") from None
    if alternatives:
        notes.append(f"{', '.join(alternatives)} would fit as well: the shapes do not tell")
    model.load_state_dict(loaded)
    return LoadReport(path, len(weights), layout, tuple(notes), metadata)


def _with_shard_in_mind(path: Path, error: CheckpointError) -> str:
    """What is wrong with weights; with a part of them, that it is a part."""
    index = index_of_shard(path)
    if index is None:
        return str(error)
    return f"one shard of several, need all of them; give their index {index}"


def _check_names(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    missing = [name for name in expected if name not in weights and not name.endswith(_COUNTER)]
    unexpected = [name for name in weights if name not in expected]
    if not missing and not unexpected:
        return
    if is_nvidia_checkpoint(weights):
        raise CheckpointError(
            "an NVIDIA ptq.pth/qat.pth: quantized, with batch norms fused and ranges inside, but "
            "float weights are needed here; eval takes it with --engine fake or int8, export, "
            "parity and qat as it is"
        )
    foreign = describe_foreign(unexpected)
    advice = f"it looks like {foreign}, which is not supported" if foreign else "check the config"
    raise CheckpointError(
        f"weights of another model: {some_names(missing, 'missing')}, "
        f"{some_names(unexpected, 'unexpected')}; {advice}"
    )


def some_names(names: list[str], what: str) -> str:
    """How many names, and the first three of them."""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")


def _bring_into_layout(weights: dict[str, Tensor], model: nn.Module) -> tuple[str, list[str]]:
    shapes = {
        f"{path}.weight" if path else "weight": tuple(module.weight.shape)
        for path, module in model.named_modules()
        if isinstance(module, SparseConvBase)
    }
    layout, alternatives = choose_layout(weights, shapes)
    for name in shapes:
        weights[name] = weights[name].permute(layout.to_native)
    return layout.name, [other.name for other in alternatives]


def checked_tensor(name: str, value: Tensor | None, expected: Tensor) -> Tensor:
    """A tensor of a file in the type of the model's own; None takes the model's.

    Raises:
        CheckpointError: another shape or kind of numbers, or values that are not finite.
    """
    if value is None:  # a counter of old BatchNorms: only its momentum=None mode reads it
        return expected
    if value.shape != expected.shape:
        raise CheckpointError(
            f"{name}: got shape {list(value.shape)}, need {list(expected.shape)}; "
            "this is a checkpoint of another model or config"
        )
    if value.dtype.is_floating_point != expected.dtype.is_floating_point:
        raise CheckpointError(f"{name}: got {value.dtype}, need {expected.dtype}")
    converted = value.to(expected.dtype)
    if converted.dtype.is_floating_point and not bool(torch.isfinite(converted).all()):
        bad = int((~torch.isfinite(converted)).sum())
        raise CheckpointError(
            f"{name}: {bad} of {converted.numel()} values are NaN or infinite; "
            "the training diverged, take an earlier checkpoint"
        )
    return converted


def save_weights(
    model: nn.Module,
    path: str | Path,
    *,
    half: bool = False,
    metadata: Mapping[str, str] | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Write the weights as safetensors; the file appears whole or not at all.

    Args:
        model: any model of ours.
        path: target, ending in `.safetensors`; with shards, in `.safetensors.index.json`.
        half: store fp16; BatchNorm parameters and statistics stay fp32.
        metadata: text by name for the file's header (config name, commit, seed).
        shard_bytes: write several files, each with tensors of at most so many bytes; shards that
            an index of this name had before, and has no more, are removed.

    Raises:
        CheckpointError: a value is not finite (in fp16, if `half`), a tensor is larger than a
            shard, or a file cannot be written.
    """
    path = Path(path)
    if shard_bytes is None and path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: need a name that ends in .safetensors")
    tensors = _stored(model, half=half)
    if shard_bytes is not None:
        save_shards(tensors, path, shard_bytes, metadata or {})
        return
    with atomic_path(path, CheckpointError) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, metadata=dict(metadata or {})))


def check_shard_size(model: nn.Module, path: Path, shard_bytes: int, *, half: bool = False) -> None:
    """Refuse before the work what `save_weights` would refuse after it.

    Raises:
        CheckpointError: a tensor is larger than a shard.
    """
    require_room(_stored(model, half=half), path, shard_bytes)


def _stored(model: nn.Module, *, half: bool) -> dict[str, Tensor]:
    """Tensors of a file, on the CPU."""
    exact = {
        f"{name}.{key}"
        for name, module in model.named_modules()
        if isinstance(module, _BATCHNORMS)
        for key in module.state_dict()
    }
    tensors = {}
    for name, value in model.state_dict().items():
        narrow = half and name not in exact and value.dtype.is_floating_point
        stored = value.detach().to("cpu", torch.float16 if narrow else value.dtype)
        tensors[name] = checked_tensor(name, stored, stored).contiguous()
    return tensors
