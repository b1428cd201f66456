"""A backbone that is not CenterPoint, from float to an INT8 file, by the public API alone.

    python examples/custom_backbone.py

The model is plain torch: voxelquant's sparse modules, batch norms and ReLUs in a forward of one's
own. Nothing is told about layer names; the trace finds what runs.
"""

import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import voxelquant as vq
from voxelquant.numerics import sqnr_db
from voxelquant.sparse import (
    SparseConv3d,
    SparseSequential,
    SparseTensor,
    SparseToDense,
    SubMConv3d,
)

GRID = (9, 64, 64)  # z, y, x


class PlainBackbone(nn.Module):
    """Three input channels, four convolutions, no residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SparseSequential(
            SubMConv3d(3, 16, 3, bias=False), nn.BatchNorm1d(16), nn.ReLU()
        )
        self.down = SparseSequential(
            SparseConv3d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm1d(32), nn.ReLU()
        )
        self.body = SparseSequential(
            SubMConv3d(32, 32, 3, bias=False), nn.BatchNorm1d(32), nn.ReLU()
        )
        self.flatten = SparseSequential(
            SparseConv3d(32, 32, (3, 1, 1), stride=(2, 1, 1)), nn.ReLU()
        )
        self.to_bev = SparseToDense()

    def forward(self, x: SparseTensor) -> Tensor:
        """Voxels with three features each → a bird's-eye-view map."""
        return self.to_bev(self.flatten(self.body(self.down(self.stem(x)))))


def make_frame(seed: int, voxels: int = 2000) -> SparseTensor:
    """Random voxels; in earnest they come from `voxelquant.sparse.voxelize_batch`."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(math.prod(GRID), generator=generator)[:voxels]
    z, y, x = cells // (GRID[1] * GRID[2]), cells // GRID[2] % GRID[1], cells % GRID[2]
    coords_bzyx = torch.stack([torch.zeros_like(z), z, y, x], 1)
    features = torch.randn(voxels, 3, generator=generator)
    return SparseTensor.from_coords(features, coords_bzyx, GRID, batch_size=1)


def main(folder: Path) -> bool:
    """Quantize, save, load, lower, export, and run the file; True if file and engine are equal."""
    torch.manual_seed(0)
    frames = [make_frame(seed) for seed in range(4)]
    model = PlainBackbone()
    with torch.no_grad():
        for frame in frames:  # stands in for training: the batch norms see some data
            model.train()(frame)
    model.eval()

    qmodel = vq.quantize(model, recipe="int8")
    vq.calibrate(qmodel, frames, method="mse")
    vq.QuantState.of(qmodel).save(folder / "ptq.safetensors")

    qmodel = vq.QuantState.load(folder / "ptq.safetensors").apply(model)
    engine = vq.lower(qmodel, backend="auto")
    vq.export_libspconv(qmodel, folder / "scn.onnx", example=frames[0])
    for defect in vq.check_file(folder / "scn.onnx"):
        print(defect)

    frame = frames[1]
    with torch.no_grad():
        expected, reference = engine(frame), model(frame)
    run = vq.FileRunner(folder / "scn.onnx")(frame.features, frame.coords_bzyx, GRID)
    (output,) = run.outputs.values()
    equal = torch.equal(output.values, expected)
    print(f"int8 against float: {sqnr_db(reference, expected):.1f} dB; file = engine: {equal}")
    return equal


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
