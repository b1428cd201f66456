"""What quantization cost: the headline and the classes."""

import math
from html import escape

from voxelquant.report.model import DatasetSummary, EngineScore, Execution


def headline_cards(scores: tuple[EngineScore, ...]) -> str:
    """One card per engine: mAP large, NDS below, the difference to the first score."""
    baseline = scores[0]
    return f'<div class="cards">{"".join(_card(score, baseline) for score in scores)}</div>'


def _card(score: EngineScore, baseline: EngineScore) -> str:
    compared = score is not baseline
    return f"""<div class="card {score.execution.value}">
<p class="engine">{engine_label(score)}</p>
<p class="big">{_percent(score.mean_ap)}<small>mAP, %</small></p>
<p class="delta-line">{_points(score.mean_ap, baseline.mean_ap) if compared else "baseline"}</p>
<p class="second"><b>{_percent(score.nds)}</b> NDS, %
{"· " + _points(score.nds, baseline.nds) if compared else ""}</p></div>"""


def headline_table(scores: tuple[EngineScore, ...]) -> str:
    """Engines as rows; differences in points against the first."""
    baseline = scores[0]
    error_names = list(baseline.mean_errors)
    timed = any(score.seconds_per_frame is not None for score in scores)
    head = "".join(f"<th>{escape(name)}</th>" for name in error_names)
    rows = []
    for score in scores:
        compared = score is not baseline
        cells = [
            _percent(score.mean_ap),
            difference(score.mean_ap, baseline.mean_ap) if compared else "",
            _percent(score.nds),
            difference(score.nds, baseline.nds) if compared else "",
            *(_number(score.mean_errors.get(name)) for name in error_names),
        ]
        if timed:
            cells.append(_number(score.seconds_per_frame))
        rows.append(
            f"<tr><th scope='row'>{escape(score.name)}</th>"
            f"<td>{execution_chip(score.execution)}</td>"
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    return f"""<div class="scroll"><table><thead><tr><th>engine</th><th>how</th><th>mAP, %</th>
<th>points</th><th>NDS, %</th><th>points</th>{head}{"<th>s / frame</th>" if timed else ""}
</tr></thead><tbody>{"".join(rows)}</tbody></table></div>"""


def class_table(scores: tuple[EngineScore, ...]) -> str:
    """Average precision of every class and engine, in percent."""
    baseline = scores[0]
    head = "".join(
        f"<th>{engine_label(score)}</th>" + ("<th>points</th>" if score is not baseline else "")
        for score in scores
    )
    rows = []
    for name, reference in baseline.class_ap.items():
        cells = []
        for score in scores:
            value = score.class_ap.get(name, math.nan)
            cells.append(f'<td class="meter" style="--ap:{_width(value)}">{_percent(value)}</td>')
            if score is not baseline:
                cells.append(f"<td>{difference(value, reference)}</td>")
        rows.append(f"<tr><th scope='row'>{escape(name)}</th>{''.join(cells)}</tr>")
    return f"""<div class="scroll"><table><thead><tr><th>class</th>{head}</tr></thead>
<tbody>{"".join(rows)}</tbody></table></div>"""


def dataset_line(dataset: DatasetSummary) -> str:
    """Where the numbers come from; a synthetic data set says so each time it is named."""
    chip = '<span class="chip synthetic">synthetic</span> ' if dataset.synthetic else ""
    note = f" {escape(dataset.note)}" if dataset.note else ""
    return (
        f'<p class="note">{chip}{escape(dataset.name)}, split <code>{escape(dataset.split)}</code>:'
        f" {dataset.frames:,} frames, {dataset.boxes:,} annotated boxes.{note}</p>"
    )


def execution_chip(execution: Execution) -> str:
    """Whether a number was simulated in float arithmetic or executed in integers."""
    return f'<span class="chip {execution.value}">{execution.value}</span>'


def engine_label(score: EngineScore) -> str:
    """The engine's name, marked with how it came about unless the name says so itself."""
    if score.name == score.execution.value:
        return escape(score.name)
    return f"{escape(score.name)} {execution_chip(score.execution)}"


def difference(value: float, reference: float) -> str:
    """Signed difference in points, coloured once it is as large as a tenth of a point.

    >>> difference(0.503, 0.5)
    '<span class="delta up">+0.30</span>'
    """
    points = 100 * (value - reference)
    if not math.isfinite(points):
        return "–"
    direction = "" if abs(points) < 0.1 else " up" if points > 0 else " down"
    return f'<span class="delta{direction}">{points:+.2f}</span>'.replace("-", "\N{MINUS SIGN}")


def _points(value: float, reference: float) -> str:
    return f"{difference(value, reference)} points"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}" if math.isfinite(fraction) else "–"


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _width(fraction: float) -> str:
    return f"{100 * fraction:.1f}" if math.isfinite(fraction) else "0"
