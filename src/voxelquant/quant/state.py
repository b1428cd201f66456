"""QuantState: everything that a quantized model is, as tensors and plain data.

Its tensors are the model's own, under the model's own keys, except that convolutions of the sparse
graph hold fp16 (`fp16(q * scale)` where they compute in 8 bits, rounded values elsewhere), plus the
ranges under `weight_amax/<module path>` and `activation_amax/<range name of the plan>`. A state
made from another tool's checkpoint also carries that file's tensors, under `carried/<name>`: no
layer reads them, a writer of that format gives them back where they are still true.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from voxelquant.errors import QuantStateError
from voxelquant.quant.fold import remove_batchnorms
from voxelquant.quant.insert import attach, insert_layers, quantization_of
from voxelquant.quant.modules import QuantConvBase
from voxelquant.quant.plan import PrecisionPlan
from voxelquant.quant.quantizer import TensorQuantizer
from voxelquant.quant.recipe import Recipe
from voxelquant.quant.state_check import check_model_fits, check_state
from voxelquant.quant.state_file import StateContent, read_state, write_state
from voxelquant.quant.stored_weight import encode_weight
from voxelquant.sparse import require_convolution

WEIGHT_AMAX = "weight_amax/"
ACTIVATION_AMAX = "activation_amax/"
CARRIED = "carried/"


@dataclass(frozen=True)
class QuantState:
    """A quantized model as data.

    Attributes:
        tensors: key → tensor on the CPU.
        recipe: the policy that made it.
        plan: resolved precisions, with the graph of kernels and tied tensors.
        metadata: free JSON (config name, provenance).
    """

    tensors: Mapping[str, Tensor]
    recipe: Recipe
    plan: PrecisionPlan
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, qmodel: nn.Module, metadata: Mapping[str, Any] | None = None) -> QuantState:
        """State of a calibrated fake-quant model.

        Raises:
            CalibrationError: a range is missing.
            QuantStateError: the model is not quantized, holds values that are not finite, or a
                weight breaks the storage law.
        """
        quantization = quantization_of(qmodel)
        plan = quantization.require_plan()
        tensors = _model_tensors(qmodel)
        for node in plan.graph.convs:
            tensors.update(_conv_tensors(qmodel, node.path))
        for name, quantizer in quantization.tensor_quantizers.items():
            tensors[ACTIVATION_AMAX + name] = quantizer.amax
        tensors.update({CARRIED + name: value for name, value in quantization.carried.items()})
        detached = {key: t.detach().cpu().clone().contiguous() for key, t in tensors.items()}
        state = cls(detached, quantization.recipe, plan, dict(metadata or {}))
        check_state(state.tensors, state.recipe, state.plan, "this model")
        return state

    def save(self, path: str | Path) -> None:
        """Write the state file; the final name appears only when it is complete.

        Raises:
            QuantStateError: a stored weight breaks the storage law, or the file cannot be written.
        """
        check_state(self.tensors, self.recipe, self.plan, str(path))
        content = StateContent(dict(self.tensors), self.recipe, self.plan, dict(self.metadata))
        write_state(Path(path), content)

    @classmethod
    def load(cls, path: str | Path) -> QuantState:
        """Read a state file; no code in it is run.

        Raises:
            QuantStateError: missing, truncated, foreign, incomplete, or not finite.
        """
        content = read_state(Path(path))
        check_state(content.tensors, content.recipe, content.plan, str(path))
        return cls(content.tensors, content.recipe, content.plan, content.metadata)

    def apply(self, model: nn.Module) -> nn.Module:
        """Fake-quant model from a freshly built float model, which stays as it is.

        Raises:
            QuantStateError: the model has other layers than the state.
        """
        check_model_fits(model, self.plan, self.tensors)
        qmodel = copy.deepcopy(model)
        remove_batchnorms(qmodel, self.plan.graph)
        for node in self.plan.graph.convs:
            _give_bias(qmodel, node.path, f"{node.path}.bias" in self.tensors)
        attach(qmodel, self.recipe)
        insert_layers(qmodel, self.plan)
        quantization_of(qmodel).carried = self.carried
        self._fill(qmodel)
        return qmodel

    @property
    def carried(self) -> dict[str, Tensor]:
        """Tensors of the checkpoint that the state was made from, by their names in that file."""
        return {
            key.removeprefix(CARRIED): value
            for key, value in self.tensors.items()
            if key.startswith(CARRIED)
        }

    def set_ranges(self, qmodel: nn.Module) -> None:
        """Give the quantizers of a model with this state's plan its ranges, in place."""
        for name, quantizer in quantization_of(qmodel).tensor_quantizers.items():
            quantizer.set_amax(self.activation_amax(name))
        for node in self.plan.quantized_convs:
            conv = qmodel.get_submodule(node.path)
            assert isinstance(conv, QuantConvBase)
            assert conv.weight_quantizer is not None
            conv.weight_quantizer.set_amax(self.weight_amax(node.path))

    def weight_amax(self, path: str) -> Tensor:
        """Ranges `[c_out]` of the weight of an int8 or fp8 convolution."""
        return self.tensors[WEIGHT_AMAX + path]

    def activation_amax(self, name: str) -> Tensor:
        """Range `[]` by its name in the plan: of a tensor read in 8 bits, or of one reader."""
        return self.tensors[ACTIVATION_AMAX + name]

    def _fill(self, qmodel: nn.Module) -> None:
        targets = _model_tensors(qmodel)
        ours = (WEIGHT_AMAX, ACTIVATION_AMAX, CARRIED)
        own = {key for key in self.tensors if not key.startswith(ours)}
        if own != set(targets):
            odd = sorted(own ^ set(targets))[0]
            side = "the state" if odd in own else "the model"
            raise QuantStateError(
                f"{odd}: got a key that only {side} has, need a model of the same architecture"
            )
        convs = {f"{node.path}.weight": node.path for node in self.plan.graph.convs}
        with torch.no_grad():
            for key, target in targets.items():
                value = self.tensors[key]
                if target.shape != value.shape:
                    raise QuantStateError(
                        f"{key}: got shape {tuple(value.shape)} in the state, the model needs "
                        f"{tuple(target.shape)}"
                    )
                if key in convs:
                    value = require_convolution(qmodel, convs[key]).own_layout(value)
                target.copy_(value)
        self.set_ranges(qmodel)


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each once, without those of quantizers."""
    kept = {
        path for path, module in model.named_modules() if not isinstance(module, TensorQuantizer)
    }
    full = model.state_dict(keep_vars=True)
    return {
        key: value
        for key, value in full.items()
        if isinstance(value, Tensor) and key.rpartition(".")[0] in kept
    }


def _conv_tensors(qmodel: nn.Module, path: str) -> dict[str, Tensor]:
    module = qmodel.get_submodule(path)
    assert isinstance(module, QuantConvBase)
    conv, quantizer = require_convolution(qmodel, path), module.weight_quantizer
    tensors = {}
    if quantizer is None:
        tensors[f"{path}.weight"] = conv.weight.to(torch.float16)
    else:
        amax = quantizer.amax
        tensors[f"{path}.weight"] = encode_weight(conv.weight, amax, quantizer.spec.fmt, path)
        tensors[WEIGHT_AMAX + path] = amax
    if conv.bias is not None:
        tensors[f"{path}.bias"] = conv.bias.to(torch.float16)
    return tensors


def _give_bias(model: nn.Module, path: str, wanted: bool) -> None:
    conv = require_convolution(model, path)
    if wanted and conv.bias is None:
        conv.module.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
