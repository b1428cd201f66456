"""The report: one self-contained HTML file, no script, nothing fetched, readable on a phone."""

import base64
import json
from collections.abc import Mapping
from html import escape
from importlib import resources

from voxelquant.report.bev import draw_bev
from voxelquant.report.histograms import draw_histograms
from voxelquant.report.layers import draw_sqnr, parity_table, parity_verdict
from voxelquant.report.model import RunReport
from voxelquant.report.tables import class_table, dataset_line, headline_cards, headline_table

# A little less than the range of the metric: a phone still shows which box is which.
BEV_HALF_WIDTH_M = 40.0


def render_report(report: RunReport, *, bev_half_width_m: float = BEV_HALF_WIDTH_M) -> str:
    """The whole page; the same report gives the same bytes.

    Sections that have nothing to show are left out.

    Raises:
        MissingDependencyError: there are pictures to draw and matplotlib is not installed.
    """
    style = resources.files("voxelquant.report").joinpath("page.css").read_text(encoding="utf-8")
    sections = [
        _cost(report),
        _pictures(report, bev_half_width_m),
        _parity(report),
        _calibration(report),
        _run(report),
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(report.title)}</title><style>
{style}</style></head><body>
<header><p class="brand">voxelquant</p><h1>{escape(report.title)}</h1>
<p class="lead">{escape(report.summary)}</p></header>
<main>{"".join(sections)}</main>
{_footer(report)}</body></html>
"""


def _section(title: str, body: str, lead: str = "") -> str:
    lead = f'<p class="section-lead">{lead}</p>' if lead else ""
    return f"<section><h2>{title}</h2>{lead}{body}</section>"


def _cost(report: RunReport) -> str:
    dataset = dataset_line(report.dataset)
    return _section(
        "What it cost",
        headline_cards(report.scores)
        + headline_table(report.scores)
        + dataset
        + "<h3>Average precision by class, %</h3>"
        + class_table(report.scores)
        + dataset,
        "<b>Simulated</b> means float arithmetic on quantized values; <b>executed</b> means that"
        " every quantized layer ran in integer arithmetic.",
    )


def _pictures(report: RunReport, half_width_m: float) -> str:
    if not report.pictures:
        return ""
    figures = []
    for picture in report.pictures:
        png = base64.b64encode(draw_bev(picture, half_width_m=half_width_m)).decode()
        caption = escape(picture.caption)
        figures.append(
            f'<figure class="bev"><img alt="{caption}, from above" '
            f'src="data:image/png;base64,{png}"><figcaption>{caption}</figcaption></figure>'
        )
    legend = (
        '<p class="legend"><i class="swatch truth"></i>ground truth <i class="swatch float-box">'
        '</i>float <i class="swatch int8-box"></i>int8 engine, dashed on top of float</p>'
    )
    return _section(
        "Frames from above",
        legend + f'<div class="gallery">{"".join(figures)}</div>',
        f"All sweeps of a frame within ±{half_width_m:g} m, the ego vehicle in the middle. The "
        "line in a box runs from its centre to its front.",
    )


def _parity(report: RunReport) -> str:
    if not report.layers:
        return ""
    return _section(
        "Do all executions agree?",
        parity_verdict(report.layers)
        + "<h3>SQNR of the integer engine against float, layer by layer</h3>"
        + draw_sqnr(report.layers)
        + "<details><summary>All layers</summary>"
        + parity_table(report.layers)
        + "</details>",
    )


def _calibration(report: RunReport) -> str:
    if not report.histograms and not report.calibration:
        return ""
    return _section(
        "Calibration",
        _definitions(report.calibration) + draw_histograms(report.histograms),
        "Occurrences of |x| in every quantized tensor, counted on a logarithmic axis. "
        "What lies beyond amax is clipped.",
    )


def _run(report: RunReport) -> str:
    blocks = []
    if report.seconds:
        seconds = {name: f"{value:.1f} s" for name, value in report.seconds.items()}
        blocks.append(f"<div><h3>Time</h3>{_definitions(seconds)}</div>")
    if report.files_bytes:
        sizes = {path: _size(count) for path, count in report.files_bytes.items()}
        blocks.append(f"<div><h3>Files</h3>{_definitions(sizes)}</div>")
    if not blocks:
        return ""
    return _section("The run", f'<div class="columns">{"".join(blocks)}</div>')


def _footer(report: RunReport) -> str:
    if not report.provenance:
        return ""
    known = {name: value for name, value in report.provenance.items() if name != "config"}
    rows = {name: _provenance_text(value) for name, value in known.items() if value is not None}
    config = report.provenance.get("config")
    details = ""
    if config is not None:
        text = escape(json.dumps(config, indent=2, ensure_ascii=False))
        details = f"<details><summary>Resolved config</summary><pre>{text}</pre></details>"
    return f"<footer><h2>Where these numbers come from</h2>{_definitions(rows)}{details}</footer>"


def _definitions(items: Mapping[str, str]) -> str:
    rows = "".join(
        f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in items.items()
    )
    return f"<dl>{rows}</dl>" if rows else ""


def _provenance_text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items() if item)
    return str(value)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
