import torch

from voxelquant.data.synthetic.quaternions import quaternion_wxyz
from voxelquant.geometry.rigid import rotation_matrix


def test_quaternions_turn_back_into_their_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    cases = torch.randn(50, 4, generator=generator, dtype=torch.float64).tolist()
    cases += [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0.5, 0.5, -0.5, 0.5]]
    for case in cases:
        matrix = rotation_matrix(case)
        quaternion = quaternion_wxyz(matrix)
        torch.testing.assert_close(rotation_matrix(quaternion), matrix, rtol=0, atol=1e-12)
        assert quaternion[0] >= 0
        assert abs(sum(q * q for q in quaternion) - 1) < 1e-12
