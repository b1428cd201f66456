"""How well the ego vehicle knows where it is: the poses that are reported beside the sweeps.

nuScenes localizes in the plane: heave and pitch of the vehicle are not compensated, so sweeps lie
apart in height. In the real cloud of ten sweeps, of a vehicle that drives, the ground sinks by 4 cm
and tilts by 1 mrad over 0.45 s, steadily. Who stands does not heave. Key frames are exact here,
boxes and points of one frame agree.
"""

import torch
from torch import Tensor

from voxelquant.data.hashing import hash_counters, purpose_code, quarter_uniforms
from voxelquant.data.synthetic.config import WorldConfig
from voxelquant.data.synthetic.layout import Scenes
from voxelquant.data.synthetic.sensor import Revolutions

_FULL_HEAVE_MPS = 3.0  # speed from which on the body heaves as measured
_HEAVE_MPS, _PITCH_RADPS, _ROLL_RADPS = 0.06, 0.0025, 0.0008  # deviations over the scenes


def reported_ego_to_world(scenes: Scenes, revolutions: Revolutions, config: WorldConfig) -> Tensor:
    """Ego poses as localization reports them, [r, 4, 4] float64: off by the age of each sweep."""
    lead = config.sweeps - 1
    sweeps_ago = torch.remainder(lead - revolutions.numbers, config.key_frame_period)
    age_s = sweeps_ago.double() * (config.lidar.period_us * 1e-6)
    keys = scenes.keys[revolutions.rows] ^ purpose_code("localization")
    words = hash_counters(keys, torch.arange(3, device=keys.device))  # [r, 3]
    quarters = [quarter.double() for quarter in quarter_uniforms(words)]
    bell = (quarters[0] + quarters[1] + quarters[2] + quarters[3] - 2.0) * 3.0**0.5
    motion = (scenes.ego_speed_mps[revolutions.rows].abs() / _FULL_HEAVE_MPS).clamp_max(1.0)
    error = bell * age_s[:, None] * motion
    heave, pitch, roll = error[:, 0] * _HEAVE_MPS, error[:, 1] * _PITCH_RADPS, error[:, 2]
    return revolutions.ego_to_world @ _tilt(heave, pitch, roll * _ROLL_RADPS)


def _tilt(heave_m: Tensor, pitch_rad: Tensor, roll_rad: Tensor) -> Tensor:
    """Rotation about y, then about x, and a shift along z, [r, 4, 4]."""
    cos_p, sin_p = torch.cos(pitch_rad), torch.sin(pitch_rad)
    cos_r, sin_r = torch.cos(roll_rad), torch.sin(roll_rad)
    zero, one = torch.zeros_like(cos_p), torch.ones_like(cos_p)
    rows = [
        *(cos_p, zero, sin_p, zero),
        *(sin_r * sin_p, cos_r, -sin_r * cos_p, zero),
        *(-cos_r * sin_p, sin_r, cos_r * cos_p, heave_m),
        *(zero, zero, zero, one),
    ]
    return torch.stack(rows, dim=-1).view(-1, 4, 4)
