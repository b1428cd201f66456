"""One frame through a network in all its variants: float, quantized, and one layer changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from voxelquant.detection.config import DetectorConfig
from voxelquant.detection.decode import Detections, decode_predictions
from voxelquant.detection.detector import CenterPoint
from voxelquant.detection.head_change import HeadChange, Positives
from voxelquant.errors import GraphError
from voxelquant.quant.layer_forms import LayerForms, Mode, layer_forms
from voxelquant.quant.plan import PrecisionPlan
from voxelquant.quant.replay import Value
from voxelquant.recipes.detect import Detector

# Of the variants, the first two; the layers follow in execution order.
FLOAT, QUANTIZED = 0, 1
FIRST_LAYER = 2


@dataclass(frozen=True)
class FrameOutcome:
    """What every variant found in one frame, and how its head differs from the float model's."""

    detections: tuple[Detections, ...]  # on the CPU
    changes: tuple[HeadChange, ...]


class VariantRunner:
    """The variants of one quantized detector.

    The sparse part runs in float and as quantized once a frame; for each layer only what depends
    on it runs again, on the kernel maps of that frame. The dense part runs for every variant:
    several maps in one batch take as long as one after the other (0.57 s for four against 0.12 s
    for each, CPU).

    Args:
        qmodel: calibrated fake-quant detector.
        config: its config.
        device: where it stands.
        mode: which network the variants deviate from.

    Raises:
        GraphError: the backbone hands more than one tensor to the neck.
    """

    def __init__(
        self, qmodel: CenterPoint, config: DetectorConfig, device: str, mode: Mode
    ) -> None:
        self.detector = Detector(qmodel, config, device)
        self.forms: LayerForms = layer_forms(qmodel, mode)
        self._dense = nn.Sequential(qmodel.neck, qmodel.bbox_head).eval()
        outputs = self.forms.plan.graph.outputs
        if len(outputs) != 1:
            raise GraphError(f"got a backbone with outputs {outputs}, need one map for the neck")
        self._output = outputs[0]

    @property
    def plan(self) -> PrecisionPlan:
        """Precisions of the quantized network."""
        return self.forms.plan

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers that are changed one at a time; variant `FIRST_LAYER + i` is layer i."""
        return tuple(self.forms.changed)

    @torch.no_grad()
    def run(self, cloud: Tensor) -> FrameOutcome:
        """All variants on one cloud `[p, 5]`."""
        x = self.detector.read([cloud])
        spec = self.detector.config.head_spec
        forms = self.forms
        runs = {id(graph): graph.run(x) for graph in (forms.float, forms.quantized)}
        reference = self._predict(runs[id(forms.float)])
        positives = Positives.of(reference, spec)
        shared = runs[id(forms.shared)]
        detections, changes = [], []

        def keep(predictions: list[dict[str, Tensor]]) -> None:
            (found,) = decode_predictions(predictions, spec)
            detections.append(found.to("cpu"))
            changes.append(positives.change_in(predictions, found))

        keep(reference)
        keep(self._predict(runs[id(forms.quantized)]))
        for name, module in forms.changed.items():
            keep(self._predict(forms.shared.rerun(shared, name, module)))
        return FrameOutcome(tuple(detections), tuple(changes))

    def _predict(self, values: Mapping[str, Value]) -> list[dict[str, Tensor]]:
        predictions: list[dict[str, Tensor]] = self._dense(values[self._output])
        return predictions
