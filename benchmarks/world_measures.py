"""What is measured of a LiDAR frame, synthetic or real: histograms and single figures.

Points are [p, 5]: x_m, y_m, z_m, intensity, and age in seconds, in the frame of the LiDAR.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.sparse import ActiveSites, ConvGeometry, VoxelGridSpec, voxelize

# The grid of CenterPoint with voxels of 0.075 m, as many voxels as there are, and of each as many
# points as the last bin of points_per_voxel counts.
GRID = VoxelGridSpec(
    point_range=(-54.0, -54.0, -5.0, 54.0, 54.0, 3.0),
    voxel_size=(0.075, 0.075, 0.2),
    max_points_per_voxel=20,
    max_voxels=1_000_000,
)
# Within this distance files hold what the sensor says of the ego vehicle and of rays without an
# answer.
OWN_RETURNS_M = 1.5
NEIGHBOURHOOD = ConvGeometry((3, 3, 3), subm=True)
# The strided convolutions of SpMiddleResNetFHD before each level but the first.
DOWN = tuple(ConvGeometry((3, 3, 3), (2, 2, 2), (z, 1, 1)) for z in (1, 1, 0))
LEVELS = len(DOWN) + 1


@dataclass(frozen=True)
class Measure:
    """One histogram: what is counted, over what, and where its bins begin and end."""

    name: str
    counted: str
    axis: str  # with its unit
    edges: tuple[float, ...]  # bins + 1; what lies outside counts in the first or last bin

    def count(self, values: Tensor) -> Tensor:
        """Values in each bin, [bins] float64."""
        edges = torch.tensor(self.edges, dtype=torch.float64)
        place = torch.bucketize(values.double().contiguous(), edges, right=True) - 1
        bins = len(edges) - 1
        return torch.bincount(place.clamp(0, bins - 1), minlength=bins).double()


def _steps(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(low + (high - low) * step / count for step in range(count + 1))


# Up to 100 a Velodyne answers for diffuse surfaces, above for retro-reflectors (its manuals say).
_TAIL = (79.5, 89.5, 99.5, 100.5, 110.5, 130.5, 160.5, 200.5, 230.5, 254.5, 255.5)
_RANGE, _HEIGHT = "distance from the sensor, m", "height above the sensor, m"
_KEY = "returns of the key frame"
_CELLS = "active cells of the 27 around a site, itself included"
_ALL = (
    Measure("points_over_range", "points", _RANGE, _steps(0, 104, 52)),
    Measure("points_over_height", "points", _HEIGHT, _steps(-5, 8, 52)),
    Measure("points_per_voxel", "voxels", "points in the voxel, up to 20", _steps(0.5, 20.5, 20)),
    Measure("voxels_over_range", "voxels", _RANGE, _steps(0, 76, 38)),
    Measure("voxels_over_height", "voxels", _HEIGHT, _steps(-5, 3, 40)),
    Measure("returns_over_range", _KEY, _RANGE, _steps(0, 104, 52)),
    Measure("returns_over_height", _KEY, _HEIGHT, _steps(-5, 8, 52)),
    Measure("returns_over_beam", _KEY, "beam, 0 looks lowest", _steps(-0.5, 31.5, 32)),
    Measure("intensity", _KEY, "intensity", _steps(-0.5, 255.5, 256)),
    Measure("intensity_tail", "bright returns of the key frame", "intensity", _TAIL),
    *(
        Measure(
            f"neighbours_level_{level}", f"sites of level {level}", _CELLS, _steps(0.5, 27.5, 27)
        )
        for level in range(LEVELS)
    ),
)
MEASURES = {measure.name: measure for measure in _ALL}
INTENSITY_RANGES_M = (0, 5, 10, 15, 20, 30, 40, 50, 70, 105)


@dataclass
class FrameFigures:
    """Of one frame: histograms by the name of their measure, and single figures by name."""

    histograms: dict[str, Tensor]  # [bins] float64
    scalars: dict[str, float]

    def update(self, other: "FrameFigures") -> "FrameFigures":
        """These figures with the others."""
        return FrameFigures(
            {**self.histograms, **other.histograms}, {**self.scalars, **other.scalars}
        )


def without_own_returns(points: Tensor) -> Tensor:
    """The points that are not the ego vehicle and not a ray without an answer."""
    return points[points[:, :2].double().norm(dim=1) > OWN_RETURNS_M]


def beams_of(points: Tensor, elevations_rad: Tensor) -> Tensor:
    """Number of the beam that a point of the key frame belongs to, by its elevation, [p] int64."""
    elevation = torch.atan2(points[:, 2].double(), points[:, :2].double().norm(dim=1))
    middles = (elevations_rad[1:] + elevations_rad[:-1]) / 2
    return torch.bucketize(elevation, middles)


def measure_key_frame(points: Tensor, beams: Tensor) -> FrameFigures:
    """Returns of one revolution over range, height and beam, and how bright they are."""
    histograms = {
        "returns_over_range": points[:, :2].double().norm(dim=1),
        "returns_over_height": points[:, 2],
        "returns_over_beam": beams,
        "intensity": points[:, 3],
        "intensity_tail": points[points[:, 3] > _TAIL[0], 3],
    }
    share = {
        f"intensity_from_{bright}": float((points[:, 3] >= bright).double().mean())
        for bright in (80, 100, 101, 200, 255)
    }
    voxels = len(voxelize(points[:, :3].contiguous(), GRID).coords_zyx)
    return FrameFigures(
        {name: MEASURES[name].count(values) for name, values in histograms.items()},
        {"returns": len(points), "voxels_of_key_frame": voxels, **share},
    )


def intensity_over_range(points: Tensor) -> Tensor:
    """Returns of one revolution by range and intensity, [ranges, 256] float64."""
    edges = torch.tensor(INTENSITY_RANGES_M, dtype=torch.float64)
    ring = torch.bucketize(points[:, :2].double().norm(dim=1), edges, right=True) - 1
    rings = len(edges) - 1
    level = points[:, 3].round().clamp(0, 255).long()
    cells = ring.clamp(0, rings - 1) * 256 + level
    return torch.bincount(cells, minlength=rings * 256).double().view(rings, 256)


def measure_cloud(points: Tensor) -> FrameFigures:
    """All sweeps of a frame: its points, and the voxels that the detector makes of them."""
    voxels = voxelize(points[:, :3].contiguous(), GRID)
    histograms = {
        "points_over_range": points[:, :2].double().norm(dim=1),
        "points_over_height": points[:, 2],
        "points_per_voxel": voxels.num_points,
    }
    figures = FrameFigures(
        {name: MEASURES[name].count(values) for name, values in histograms.items()},
        {"points": len(points)},
    )
    return figures.update(measure_voxels(voxels.coords_zyx))


def measure_voxels(coords_zyx: Tensor) -> FrameFigures:
    """Voxels over range and height, and what a sparse convolution finds at every level."""
    size, low = torch.tensor(GRID.voxel_size[::-1]), torch.tensor(GRID.point_range[2::-1])
    z, y, x = ((coords_zyx + 0.5) * size + low).double().unbind(1)
    figures = FrameFigures(
        {
            "voxels_over_range": MEASURES["voxels_over_range"].count(torch.hypot(x, y)),
            "voxels_over_height": MEASURES["voxels_over_height"].count(z),
        },
        {"voxels": len(coords_zyx)},
    )
    for level, neighbours in enumerate(count_neighbours(coords_zyx)):
        name = f"neighbours_level_{level}"
        figures.histograms[name] = MEASURES[name].count(neighbours)
        figures.scalars[f"sites_level_{level}"] = len(neighbours)
        figures.scalars[name] = float(neighbours.double().mean())
    return figures


def count_neighbours(coords_zyx: Tensor) -> list[Tensor]:
    """Active cells among the 27 around each site of every level, itself included, [sites] int64."""
    coords_bzyx = torch.nn.functional.pad(coords_zyx.int(), (1, 0))
    sites = ActiveSites(coords_bzyx, GRID.sparse_shape, 1)
    counts = []
    for down in (None, *DOWN):
        if down is not None:
            _, sites = sites.kernel_map(down)
        kernel_map, _ = sites.kernel_map(NEIGHBOURHOOD)
        counts.append((kernel_map.table < kernel_map.n_in).sum(0))
    return counts
