"""The two yaw conventions.

θ is the ordinary yaw: counter-clockwise from +x to the box's length axis. det3d, and with it every
CenterPoint checkpoint and info file, stores `yaw' = −θ − π/2`. The map is its own inverse.
"""

import math

import torch
from torch import Tensor


def wrap_to_pi(angle_rad: Tensor) -> Tensor:
    """Same direction, as an angle in [−π, π).

    Example:
        >>> wrap_to_pi(torch.tensor([0.0, 4.0, -4.0]))
        tensor([ 0.0000, -2.2832,  2.2832])
    """
    wrapped = torch.remainder(angle_rad + math.pi, 2 * math.pi) - math.pi
    # The remainder of a tiny negative number rounds up to the full period.
    return torch.where(wrapped >= math.pi, wrapped - 2 * math.pi, wrapped)


def yaw_det3d_to_theta(yaw_det3d_rad: Tensor) -> Tensor:
    """Ordinary yaw θ of the length axis, in [−π, π), from det3d's yaw'."""
    return wrap_to_pi(-yaw_det3d_rad - math.pi / 2)


def theta_to_yaw_det3d(theta_rad: Tensor) -> Tensor:
    """det3d's yaw', in [−π, π), from the ordinary yaw θ of the length axis."""
    return wrap_to_pi(-theta_rad - math.pi / 2)
