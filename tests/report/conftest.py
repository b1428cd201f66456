import numpy as np
import pytest

from voxelquant.report.model import (
    DatasetSummary,
    EngineScore,
    Execution,
    FramePicture,
    LayerParity,
    RunReport,
    TensorHistogram,
)

CLASSES = [
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
]


def _score(name: str, execution: Execution, loss: float, seconds: float) -> EngineScore:
    class_ap = {c: 0.82 - 0.06 * i - loss * (1 + i % 3) for i, c in enumerate(CLASSES)}
    return EngineScore(
        name,
        execution,
        mean_ap=sum(class_ap.values()) / len(class_ap),
        nds=0.581 - loss,
        class_ap=class_ap,
        mean_errors={"mATE": 0.21 + loss, "mASE": 0.25, "mAOE": 0.38, "mAVE": 0.3, "mAAE": 0.2},
        seconds_per_frame=seconds,
    )


def _picture(seed: int) -> FramePicture:
    """Rings of ground, a few walls, and cars of which int8 misses one."""
    generator = np.random.default_rng(seed)
    ranges_m = np.repeat(np.geomspace(3, 60, 24), 1000)
    azimuths = generator.uniform(-np.pi, np.pi, ranges_m.size)
    ground = np.stack((ranges_m * np.cos(azimuths), ranges_m * np.sin(azimuths)), axis=1)
    ground = ground + generator.normal(0, 0.05, ground.shape)
    height = np.where(np.abs(ground[:, 0]) > 18, generator.uniform(-1.8, 3, ranges_m.size), -1.8)
    n = 14
    boxes = np.zeros((n, 9), dtype=np.float32)
    boxes[:, 0] = generator.uniform(-14, 14, n)
    boxes[:, 1] = generator.uniform(-45, 45, n)
    boxes[:, 3:6] = (1.9, 4.6, 1.7)
    boxes[:, 8] = generator.choice([0.0, np.pi, np.pi / 2], n) + generator.normal(0, 0.1, n)
    noise = generator.normal(0, 0.15, (n, 9)).astype(np.float32)
    return FramePicture(
        caption=f"scene-{seed:04d}, key frame 12",
        points=np.column_stack((ground, height)).astype(np.float32),
        ground_truth=boxes,
        float_boxes=boxes + noise,
        int8_boxes=(boxes + 1.15 * noise)[1:],
    )


def _histogram(index: int) -> TensorHistogram:
    generator = np.random.default_rng(index)
    values = np.abs(generator.laplace(0, 1 + index / 3, 200_000)) * generator.choice([1, 1, 1.6])
    top = float(values.max())
    counts, _ = np.histogram(values, bins=2048, range=(0, top))
    name = f"backbone.conv{1 + index // 2}.{index % 2}.conv1 (input)"
    return TensorHistogram(name, counts.astype(np.float64), top, 0.62 * top, "mse")


def _layer(index: int) -> LayerParity:
    first = index < 3
    return LayerParity(
        path=f"backbone.conv{1 + index // 4}.{index % 4}.conv{1 + index % 2}",
        kind="add" if index % 4 == 3 else "conv",
        precision="fp16" if first else "int8",
        sqnr_db=62.0 - index if first else 34.0 - 0.9 * index,
        relative_l2=10 ** (-(34.0 - 0.9 * index) / 20),
        codes=0 if first else 1_250_000 - 40_000 * index,
        differing_codes=0 if first else index % 5,
        largest_code_difference=0 if first else int(index % 5 > 0),
        file_equals_engine=True,
    )


@pytest.fixture(scope="session")
def run_report() -> RunReport:
    """A page with every section filled; all its numbers are made up."""
    return RunReport(
        title="centerpoint_tiny in INT8",
        summary="A trained CenterPoint, calibrated on 32 frames, measured with the official metric "
        "and executed in integers.",
        dataset=DatasetSummary("synthetic LiDAR world", "val", True, 40, 1804),
        scores=(
            _score("float", Execution.FLOAT, 0.0, 0.41),
            _score("fake-quant", Execution.SIMULATED, 0.0021, 0.63),
            _score("int8", Execution.EXECUTED, 0.0024, 0.58),
        ),
        calibration={"recipe": "reference", "method": "mse", "frames": "32"},
        pictures=tuple(_picture(seed) for seed in (3, 103)),
        histograms=tuple(_histogram(i) for i in range(9)),
        layers=tuple(_layer(i) for i in range(16)),
        seconds={"write the world": 31.2, "calibrate": 14.9, "evaluate float": 22.0},
        files_bytes={"runs/demo/ptq.safetensors": 1_934_112, "runs/demo/result.json": 9_120},
        provenance={
            "voxelquant": "0.1.0",
            "commit": "0123456789abcdef",
            "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "triton": None},
            "machine": {"system": "Linux x86_64", "cpu_model": "some CPU", "cores": 2, "gpus": ()},
            "seed": 0,
            "config": {"name": "centerpoint_tiny", "voxel_size": [0.2, 0.2, 0.2]},
        },
    )
