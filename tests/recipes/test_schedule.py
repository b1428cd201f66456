import math

import pytest

from voxelquant.recipes.schedule import OneCycle


def test_rate_and_momentum_at_the_corners() -> None:
    cycle = OneCycle(total_steps=1000, lr_max=1e-3, moms=(0.95, 0.85), div_factor=10, pct_start=0.4)
    assert cycle.at(0) == pytest.approx((1e-4, 0.95))
    assert cycle.at(400) == pytest.approx((1e-3, 0.85))
    assert cycle.at(1000) == pytest.approx((1e-8, 0.95))


def test_half_way_up_and_down_is_the_mean_of_both_ends() -> None:
    cycle = OneCycle(total_steps=1000, lr_max=1e-3)
    assert cycle.at(200) == pytest.approx(((1e-4 + 1e-3) / 2, 0.9))
    assert cycle.at(700) == pytest.approx(((1e-3 + 1e-8) / 2, 0.9))


def test_against_the_formula_written_out() -> None:
    cycle = OneCycle(total_steps=50, lr_max=0.003, pct_start=0.4)
    for step in range(50):
        if step < 20:
            expected = 0.003 + (0.0003 - 0.003) / 2 * (math.cos(math.pi * step / 20) + 1)
        else:
            end = 0.0003 / 1e4
            expected = end + (0.003 - end) / 2 * (math.cos(math.pi * (step - 20) / 30) + 1)
        assert cycle.at(step)[0] == pytest.approx(expected, rel=1e-12)


def test_a_run_of_one_step_has_a_rate() -> None:
    lr, beta1 = OneCycle(total_steps=1, lr_max=1.0).at(0)
    assert lr == pytest.approx(1.0)
    assert beta1 == pytest.approx(0.85)
