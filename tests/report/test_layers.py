import re

from voxelquant.report.layers import draw_sqnr, parity_table, parity_verdict
from voxelquant.report.model import LayerParity

GOOD = LayerParity("backbone.a", "conv", "int8", 30.0, 0.03, 1_000_000, 2, 1, True)
BAD = LayerParity("backbone.b", "conv", "int8", 5.0, 0.56, 1_000_000, 9, 7, False)


def test_agreement_is_said_in_two_sentences() -> None:
    verdict = parity_verdict((GOOD, GOOD))
    assert "<b>2 of 2</b>" in verdict
    assert "<b>4 of 2,000,000</b> output codes, 2 in a million, by at most <b>1</b>" in verdict
    assert "✗" not in verdict


def test_disagreement_is_marked() -> None:
    assert parity_verdict((GOOD, BAD)).count("✗") == 2
    row = parity_table((GOOD, BAD)).partition("backbone.b")[2]
    assert "differs" in row
    assert "<td>7</td>" in row


def test_nothing_compared_nothing_claimed() -> None:
    assert parity_verdict((LayerParity("a", "conv", "fp16"),)) == ""
    assert "✓" not in parity_table((LayerParity("a", "conv", "fp16"),))


def test_bars_share_one_axis() -> None:
    layers = (LayerParity("a", "conv", "fp16", 40.0), LayerParity("b", "conv", "int8", 10.0))
    assert re.findall(r"width:([\d.]+)%", draw_sqnr(layers)) == ["100.0", "25.0"]


def test_a_layer_that_is_all_noise_has_no_bar_and_no_negative_width() -> None:
    assert "width:0.0%" in draw_sqnr((LayerParity("a", "conv", "int8", -3.0),))


def test_bars_have_the_colour_of_the_output() -> None:
    layers = (
        LayerParity("a", "conv", "fp16 → int8", 30.0),
        LayerParity("b", "conv", "int8 → fp16", 60.0),
        LayerParity("c", "conv", "fp8 → fp8", 30.0),
    )
    assert re.findall(r'class="bar (\w+)"', draw_sqnr(layers)) == ["int8", "wide", "int8"]


def test_labels_of_bars_leave_out_the_module_that_all_stand_in() -> None:
    layers = (
        LayerParity("backbone.conv1.0.add", "add", "int8", 40.0),
        LayerParity("backbone.extra_conv.0", "conv", "int8", 10.0),
    )
    assert re.findall("<code>(.*?)</code>", draw_sqnr(layers)) == ["conv1.0.add", "extra_conv.0"]
    assert "<code>backbone.conv1.0.add</code>" in parity_table(layers)
