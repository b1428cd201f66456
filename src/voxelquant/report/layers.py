"""Layer by layer: how far the integer engine has drifted from float, and whether all agree."""

from collections.abc import Sequence
from html import escape

from voxelquant.report.model import LayerParity

AXIS_STEP_DB = 10


def draw_sqnr(layers: tuple[LayerParity, ...]) -> str:
    """One bar per layer, in network order, as long as its signal-to-quantization-noise ratio."""
    measured = [layer for layer in layers if layer.sqnr_db is not None]
    highest = max((layer.sqnr_db or 0.0 for layer in measured), default=0.0)
    axis_db = max(AXIS_STEP_DB, AXIS_STEP_DB * -(-highest // AXIS_STEP_DB))
    rows = []
    labels = without_common_root([layer.path for layer in measured])
    for layer, label in zip(measured, labels, strict=True):
        sqnr_db = layer.sqnr_db or 0.0
        percent = 100 * min(max(sqnr_db, 0.0), axis_db) / axis_db
        rows.append(
            f'<div class="bar-row"><code>{escape(label)}</code>'
            f'<span class="track" style="--step:{100 * AXIS_STEP_DB / axis_db:.2f}%">'
            f'<span class="bar {_precision_class(layer.precision)}" style="width:{percent:.1f}%">'
            f"</span></span><b>{sqnr_db:.1f}</b></div>"
        )
    legend = (
        '<p class="legend"><i class="swatch int8"></i>8 bits <i class="swatch wide"></i>fp16 or '
        f"wider · dB, a grid line every {AXIS_STEP_DB}</p>"
    )
    return f'{legend}<div class="bars">{"".join(rows)}</div>'


def without_common_root(paths: Sequence[str]) -> list[str]:
    """Module paths without the module that all of them stand in; a phone has room for the rest.

    >>> without_common_root(["backbone.conv1.0.add", "backbone.extra_conv.0"])
    ['conv1.0.add', 'extra_conv.0']
    >>> without_common_root(["stem", "stem.0"])
    ['stem', 'stem.0']
    """
    roots = {path.partition(".")[0] for path in paths}
    if len(roots) != 1 or not all("." in path for path in paths):
        return list(paths)
    return [path.partition(".")[2] for path in paths]


def parity_table(layers: tuple[LayerParity, ...]) -> str:
    """The layers as a table: agreement of fake-quant, integer engine and exported file."""
    rows = "".join(
        f"<tr><th scope='row'><code>{escape(layer.path)}</code></th><td>{escape(layer.kind)}</td>"
        f'<td><span class="chip {_precision_class(layer.precision)}">{escape(layer.precision)}'
        f"</span></td>{_codes_cells(layer)}<td>{_file_mark(layer.file_equals_engine)}</td>"
        f"<td>{_number(layer.sqnr_db, '.1f')}</td><td>{_number(layer.relative_l2, '.4f')}</td></tr>"
        for layer in layers
    )
    return f"""<div class="scroll"><table class="parity">
<thead><tr><th>layer</th><th>kind</th><th>precision</th><th>codes compared</th>
<th>that differ</th><th>largest gap</th><th>file = engine</th>
<th>SQNR, dB</th><th>rel. L2</th></tr></thead><tbody>{rows}</tbody></table></div>"""


def parity_verdict(layers: tuple[LayerParity, ...]) -> str:
    """The two sentences that the table adds up to."""
    filed = [layer for layer in layers if layer.file_equals_engine is not None]
    equal = sum(bool(layer.file_equals_engine) for layer in filed)
    codes = sum(layer.codes for layer in layers)
    differing = sum(layer.differing_codes for layer in layers)
    gap = max((layer.largest_code_difference for layer in layers), default=0)
    sentences = []
    if filed:
        good = equal == len(filed)
        sentences.append(
            f"{_verdict_mark(good)} The exported file, run from its bytes alone, equals the "
            f"integer engine bit for bit in <b>{equal} of {len(filed)}</b> layers."
        )
    if codes:
        sentences.append(
            f"{_verdict_mark(gap <= 1)} Given equal inputs, fake-quant and the integer engine "
            f"differ in <b>{differing:,} of {codes:,}</b> output codes, "
            f"{_times_per_million(differing / codes)}, by at most <b>{gap}</b>."
        )
    return "".join(f'<p class="verdict">{sentence}</p>' for sentence in sentences)


def _times_per_million(share: float) -> str:
    return f"{1e6 * share:.3g} in a million"


def _precision_class(precision: str) -> str:
    """By what the layer hands on: `fp16 → int8` has the noise of 8 bits."""
    return "int8" if precision.endswith(("int8", "fp8")) else "wide"


def _codes_cells(layer: LayerParity) -> str:
    if not layer.codes:
        return "<td>–</td><td>–</td><td>–</td>"
    differing = f"{layer.differing_codes:,}" if layer.differing_codes else "0"
    return f"<td>{layer.codes:,}</td><td>{differing}</td><td>{layer.largest_code_difference:d}</td>"


def _file_mark(equal: bool | None) -> str:
    if equal is None:
        return "–"
    return '<span class="yes">equal</span>' if equal else '<span class="no">differs</span>'


def _verdict_mark(good: bool) -> str:
    return '<span class="yes">✓</span>' if good else '<span class="no">✗</span>'


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
