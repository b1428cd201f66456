import math

import pytest
import torch

from voxelquant.data.frame import Frame
from voxelquant.data.objects import cut_objects, keep_box_points
from voxelquant.data.sampling import seeded_generator
from voxelquant.geometry import points_in_boxes


def crowded(seed: int, scale_m: float) -> Frame:
    """Boxes of all sizes, some beyond the range; half of the points stand on their faces."""
    generator = seeded_generator(seed)
    boxes = torch.rand((40, 9), generator=generator) - 0.5
    boxes[:, :2] *= scale_m
    boxes[:, 3:6] = 0.01 + 14 * torch.rand((40, 3), generator=generator) ** 3
    boxes[:, 8] = torch.randint(-3, 4, (40,), generator=generator) * math.pi / 4
    points = torch.rand((4000, 5), generator=generator) - 0.5
    points[:, :2] *= scale_m
    edges = torch.rand((4000, 3), generator=generator) - 0.5
    edges[:2000, 0] = edges[:2000, 0].sign() / 2  # a corner or a side
    chosen = boxes[torch.randint(40, (4000,), generator=generator)]
    along, across, up = (edges * chosen[:, [4, 3, 5]]).unbind(1)
    theta = -chosen[:, 8] - math.pi / 2
    x = along * theta.cos() - across * theta.sin()
    y = along * theta.sin() + across * theta.cos()
    points = torch.cat((points, points))
    points[:4000, :3] = chosen[:, :3] + torch.stack((x, y, up), 1)
    return Frame(
        token="crowded",
        points=points,
        boxes_det3d=boxes,
        labels=torch.arange(40),
        num_lidar_pts=None,
        ref_to_ego=torch.eye(4),
        ego_to_global=torch.eye(4),
        timestamp=0.0,
    )


@pytest.mark.parametrize("scale_m", [30.0, 250.0, 1500.0])
def test_no_point_of_a_box_is_missed(scale_m: float) -> None:
    for seed in range(5):
        frame = crowded(seed, scale_m)
        boxes = frame.boxes_det3d
        assert boxes is not None
        inside = points_in_boxes(frame.points, boxes)
        assert 1000 < int(inside.any(dim=1).sum()) < 8000
        expected = []
        for k, box in enumerate(boxes):
            cloud = frame.points[inside[:, k]].clone()
            cloud[:, :3] -= box[:3]
            expected.append(cloud)
        cut = cut_objects(frame)
        full = inside.any(dim=0)
        assert torch.equal(cut.points, torch.cat(expected))
        assert torch.equal(cut.num_points, inside.sum(dim=0)[full])
        assert torch.equal(cut.labels, torch.arange(40)[full])
        assert torch.equal(cut.boxes_det3d, boxes[full])
        less = keep_box_points(frame, seeded_generator(0))
        assert torch.equal(cut_objects(less).points, cut.points)
        if scale_m == 250.0:
            assert len(less.points) < 6000
