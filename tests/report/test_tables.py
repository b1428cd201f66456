import math
from dataclasses import replace

from voxelquant.report.model import RunReport
from voxelquant.report.tables import class_table, difference, headline_table


def test_small_differences_are_not_coloured() -> None:
    assert difference(0.5009, 0.5) == '<span class="delta">+0.09</span>'
    assert difference(0.499, 0.5011) == '<span class="delta down">\N{MINUS SIGN}0.21</span>'


def test_a_class_without_a_number_is_a_dash(run_report: RunReport) -> None:
    unmeasured = {**run_report.scores[1].class_ap, "bus": math.nan}
    scores = (run_report.scores[0], replace(run_report.scores[1], class_ap=unmeasured))
    bus = class_table(scores).partition("bus</th>")[2].partition("</tr>")[0]
    assert bus.count("–") == 2
    assert "64.00" in bus


def test_speed_has_a_column_only_where_it_was_measured(run_report: RunReport) -> None:
    assert "s / frame" in headline_table(run_report.scores)
    untimed = tuple(replace(score, seconds_per_frame=None) for score in run_report.scores)
    assert "s / frame" not in headline_table(untimed)
