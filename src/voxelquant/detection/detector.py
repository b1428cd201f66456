"""CenterPoint VoxelNet: sparse backbone, dense neck, center-based head."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from voxelquant.detection.backbone import SpMiddleResNetFHD
from voxelquant.detection.config import DetectorConfig, Reader, load_config
from voxelquant.detection.head import CenterHead
from voxelquant.detection.neck import RPN
from voxelquant.detection.reader import read_clouds
from voxelquant.sparse import SparseTensor, VoxelGrid, VoxelGridSpec

Dense = Callable[[Tensor], list[dict[str, Tensor]]]


class CenterPoint(nn.Module):
    """The detector; children and state-dict keys are those of det3d's `VoxelNet`.

    Args:
        config: geometry, widths and classes.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = SpMiddleResNetFHD(config.backbone)
        self.neck = RPN(config.bev_channels, config.neck)
        class_counts = [len(names) for names in config.tasks]
        self.bbox_head = CenterHead(config.neck.out_channels, class_counts, config.head)

    @classmethod
    def from_config(cls, name_or_path: str | Path) -> "CenterPoint":
        """Detector of a bundled config name or a config file, with fresh weights."""
        return cls(load_config(name_or_path))

    def voxel_grid(self, train: bool = False) -> VoxelGrid:
        """Where voxels lie and, as a `VoxelGridSpec`, how many are kept: in training or inference.

        A dynamic reader has no limits and gets a plain `VoxelGrid`.
        """
        point_range, voxel_size = self.config.point_range, self.config.voxel_size
        max_points, limits = self.config.max_points_per_voxel, self.config.max_voxels
        if max_points is None or limits is None:
            return VoxelGrid(point_range, voxel_size)
        limit = limits[0] if train else limits[1]
        return VoxelGridSpec(point_range, voxel_size, max_points, limit)

    def read_clouds(self, clouds: list[Tensor], *, train: bool = False) -> SparseTensor:
        """Network input of a batch of clouds `[p, 5]`: x_m, y_m, z_m, intensity, dt_s.

        The columns are `config.n_point_columns`; 16 for a reader of painted and virtual points.
        """
        return read_clouds(
            clouds,
            self.voxel_grid(train),
            n_columns=self.config.n_point_columns,
            virtual=self.config.reader is Reader.DYNAMIC_VIRTUAL,
        )

    def forward(self, x: SparseTensor, dense: Dense | None = None) -> list[dict[str, Tensor]]:
        """Voxel means → per task the raw maps reg, height, dim, rot, vel and hm.

        Maps are `[b, channels, y / s, x / s]` with s = `config.out_size_factor`; heatmaps are
        logits, sizes are logarithms.

        Args:
            x: voxel means.
            dense: runs in place of neck and head.
        """
        return (dense or self.dense)(self.backbone(x))

    def dense(self, bev: Tensor) -> list[dict[str, Tensor]]:
        """BEV map → raw maps: neck and head."""
        maps: list[dict[str, Tensor]] = self.bbox_head(self.neck(bev))
        return maps
