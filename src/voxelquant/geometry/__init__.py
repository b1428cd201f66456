"""Boxes, yaw conventions, rotated overlap, rigid transforms: written once for everybody."""
