import builtins
import io
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from voxelquant.errors import MissingDependencyError
from voxelquant.report.sensitivity import BAR, INTERVAL, KEPT, LayerBar, draw_sensitivity


def bars(count: int = 29, kept: int = 2) -> list[LayerBar]:
    return [
        LayerBar(
            f"backbone.conv{i}.long.name",
            1 / (i + 1),
            2 / (i + 1),
            1 / (i + 1),
            3 / (i + 1),
            i < kept,
        )
        for i in range(count)
    ]


def pixels(png: bytes) -> np.ndarray:
    return imread(io.BytesIO(png))[..., :3]


def amount(image: np.ndarray, colour: str) -> int:
    return int((np.abs(image - to_rgb(colour)).max(axis=2) < 0.05).sum())


def test_a_row_for_every_layer() -> None:
    few, many = (
        pixels(draw_sensitivity(bars(5), title="t")),
        pixels(draw_sensitivity(bars(30), title="t")),
    )
    assert 25 * 20 < many.shape[0] - few.shape[0] < 25 * 40
    assert many.shape[1] == few.shape[1]
    assert np.array_equal(many[0, 0], [1, 1, 1])  # a light page


def test_what_is_kept_has_its_own_colour() -> None:
    assert amount(pixels(draw_sensitivity(bars(kept=0), title="t")), KEPT) == 0
    image = pixels(draw_sensitivity(bars(kept=2), title="t"))
    assert amount(image, KEPT) > 1000
    assert amount(image, BAR) > 1000


def test_longer_bars_for_larger_costs() -> None:
    small, large = LayerBar("a", 1.0), LayerBar("a", 4.0)
    ruler = LayerBar("b", 4.0)
    drawn = [amount(pixels(draw_sensitivity([x, ruler], title="t")), BAR) for x in (small, large)]
    assert drawn[1] / drawn[0] == pytest.approx(8 / 5, rel=0.05)


def test_the_proxy_alone_has_one_panel_and_no_intervals() -> None:
    layers = [LayerBar(f"layer{i}", 1.0 - i / 10) for i in range(5)]
    alone = pixels(draw_sensitivity(layers, title=""))
    both = pixels(draw_sensitivity(bars(5, kept=0), title=""))
    assert amount(alone, BAR) > 1.5 * amount(both, BAR) / 2
    assert amount(both, INTERVAL) > amount(alone, INTERVAL)


def test_costs_below_zero_and_no_layer_at_all_can_be_drawn() -> None:
    assert draw_sensitivity([LayerBar("a", -0.1, -1.0, -2.0, 0.5)], title="t")
    assert draw_sensitivity([], title="t")


def test_the_same_bars_give_the_same_bytes() -> None:
    assert draw_sensitivity(bars(), title="t") == draw_sensitivity(bars(), title="t")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def fail(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(MissingDependencyError, match=r"voxelquant\[viz\]"):
        draw_sensitivity(bars(), title="t")
