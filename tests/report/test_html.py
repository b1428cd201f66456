import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from voxelquant.report.html import render_report
from voxelquant.report.model import RunReport

VOID_TAGS = {"meta", "img", "rect", "line", "br"}


class StrictParser(HTMLParser):
    """Raises on a tag that closes another than the one open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(run_report: RunReport) -> str:
    return render_report(run_report)


def test_the_page_is_well_formed_and_fetches_nothing(page: str) -> None:
    parser = StrictParser()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in parser.sources)
    assert not re.search(r"<script|<link|@import|url\(|https?:", page)


def test_the_same_report_gives_the_same_bytes(run_report: RunReport, page: str) -> None:
    assert render_report(run_report) == page


def test_every_table_says_how_and_on_what(page: str) -> None:
    for table in ("What it cost", "Average precision by class"):
        after = page.partition(table)[2]
        assert after.index("chip simulated") < after.index("chip executed")
        assert after.index("chip executed") < after.index("chip synthetic")


def test_real_data_is_not_called_synthetic(run_report: RunReport) -> None:
    real = replace(
        run_report, dataset=replace(run_report.dataset, name="nuScenes", synthetic=False)
    )
    assert "chip synthetic" not in render_report(real)


def test_numbers_are_percent_and_differences_points(page: str) -> None:
    assert "55.00<small>mAP, %" in page
    assert '<span class="delta down">\N{MINUS SIGN}0.40</span> points' in page
    assert "<td>58.10</td>" in page


def test_what_a_user_names_is_escaped(run_report: RunReport) -> None:
    page = render_report(replace(run_report, title="<b>mine</b>", files_bytes={"<i>": 1}))
    assert "&lt;b&gt;mine&lt;/b&gt;" in page
    assert "<i>" not in page


def test_empty_sections_are_left_out(run_report: RunReport) -> None:
    bare = replace(
        run_report,
        pictures=(),
        histograms=(),
        calibration={},
        layers=(),
        seconds={},
        files_bytes={},
        provenance={},
    )
    page = render_report(bare)
    assert page.count("<h2>") == 1
    assert "What it cost" in page
