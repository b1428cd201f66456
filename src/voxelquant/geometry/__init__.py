"""Boxes, yaw conventions, rotated overlap, rigid transforms: written once for everybody."""

from voxelquant.geometry.boxes import (
    bev_rectangles,
    box_corners_3d,
    box_corners_bev,
    points_in_boxes,
)
from voxelquant.geometry.overlap import (
    near_pairs,
    rectangles_overlap,
    rotated_iou_bev,
    rotated_iou_bev_pairs,
)
from voxelquant.geometry.rigid import (
    invert_pose,
    pose_matrix,
    quaternion_to_yaw,
    rotation_matrix,
    transform_points,
    yaw_to_quaternion,
)
from voxelquant.geometry.vertex_overlap import (
    CORNER_MARGIN_M,
    vertex_iou_above,
    vertex_iou_bev_pairs,
)
from voxelquant.geometry.yaw import theta_to_yaw_det3d, wrap_to_pi, yaw_det3d_to_theta

__all__ = [
    "CORNER_MARGIN_M",
    "bev_rectangles",
    "box_corners_3d",
    "box_corners_bev",
    "invert_pose",
    "near_pairs",
    "points_in_boxes",
    "pose_matrix",
    "quaternion_to_yaw",
    "rectangles_overlap",
    "rotated_iou_bev",
    "rotated_iou_bev_pairs",
    "rotation_matrix",
    "theta_to_yaw_det3d",
    "transform_points",
    "vertex_iou_above",
    "vertex_iou_bev_pairs",
    "wrap_to_pi",
    "yaw_det3d_to_theta",
    "yaw_to_quaternion",
]
