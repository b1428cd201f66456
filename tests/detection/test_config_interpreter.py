import time
import tracemalloc

import pytest

from voxelquant.detection.config_interpreter import interpret_config
from voxelquant.errors import ConfigError

IMPORTS = "import itertools\nimport logging\n"
FACTOR = "from det3d.utils.config_tool import get_downsample_factor\n"


def _value(expression: str, preamble: str = "") -> object:
    return interpret_config(f"{preamble}x = {expression}", "configs/some_config.py")["x"]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("[1, -2.5, 'a', None, True]", [1, -2.5, "a", None, True]),
        ("(1, 2)", (1, 2)),
        ("{'reg': (2, 2)}", {"reg": (2, 2)}),
        ("dict(a=1, b=dict(c=[1]))", {"a": 1, "b": {"c": [1]}}),
        ("sum([256, 256])", 512),
        ("sum([0.5], 1)", 1.5),
        ("list(range(3))", [0, 1, 2]),
        ("range(8)", range(8)),
        ("list(itertools.chain(*[[1], (2, 3)]))", [1, 2, 3]),
        ("[t['n'] for t in [dict(n=1), dict(n=2)]]", [1, 2]),
        ("[i * j for i in range(3) if i for j in [1, 10]]", [1, 10, 2, 20]),
        ("logging.getLogger('RPN')", None),
        ("'./work/{}/{}'.format('a', 2)", "./work/a/2"),
        ("'{1}{0}{{}}'.format('a', 'b')", "ba{}"),
        ("__file__[__file__.rfind('/') + 1:-3]", "some_config"),
        ("[1, 2, 3][-1]", 3),
        ("[1.0] * 2 + [0.2]", [1.0, 1.0, 0.2]),
        ("2 ** 3 - 7 // 2 + 7 % 4 - 1 / 2", 7.5),
        ("dict(type='A') if not False else dict(type='B')", {"type": "A"}),
        ("'a' 'b' + 'c'", "abc"),
    ],
)
def test_known_constructs(expression: str, expected: object) -> None:
    assert _value(expression, IMPORTS) == expected


def test_names_docstrings_and_chained_assignments() -> None:
    names = interpret_config('"""Doc."""\na = b = 3\n__hidden = 1\na = a + 1\n', "c.py")
    assert names == {"a": 4, "b": 3}


def test_comprehension_variables_do_not_leak() -> None:
    with pytest.raises(ConfigError, match=r"c.py:2: the name `i`"):
        interpret_config("a = [i for i in [1]]\nb = i\n", "c.py")
    assert interpret_config("i = 5\na = [i for i in [1]]\nb = i\n", "c.py")["b"] == 5


def test_downsample_factor() -> None:
    model = (
        "m = dict(neck=dict(ds_layer_strides=[1, 2], us_layer_strides=[1, 2]), "
        "backbone=dict(ds_factor=8))\n"
    )
    assert _value("get_downsample_factor(m)", FACTOR + model) == 8
    assert _value("get_downsample_factor(dict(first_stage_cfg=m))", FACTOR + model) == 8
    pillars = "m = dict(neck=dict(ds_layer_strides=[2, 2, 2], us_layer_strides=[0.5, 1, 2]), "
    assert (
        _value("get_downsample_factor(m)", f"{FACTOR}{pillars}backbone=dict(ds_factor=1))\n") == 4
    )
    without_strides = "m = dict(neck=dict(), backbone=dict(ds_factor=8))\n"
    assert _value("get_downsample_factor(m)", FACTOR + without_strides) == 8


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import os", r"c.py:1: `import os`"),
        ("import logging as x", "`import logging as x`"),
        ("from os import system", "`from os import system`"),
        ("from . import logging", "`from . import logging`"),
        ("x = 1\nx = __import__('os').system('touch /tmp/pwned')", r"c.py:2: .*call"),
        ("x = open('/etc/passwd')", r"the call `open\(...\)`"),
        ("x = eval('1')", r"the call `eval\(...\)`"),
        ("x = ().__class__.__bases__", "`Attribute`"),
        ("import logging\nx = logging.os", "c.py:2: `Attribute`"),
        ("import logging\nx = logging.getLogger('a').handlers", "`Attribute`"),
        ("import logging\nx = logging.shutdown()", r"the call `logging.shutdown\(...\)`"),
        ("x = itertools.chain([1])", r"the call `itertools.chain\(...\)`"),
        ("x = get_downsample_factor(1)", "the call `get_downsample_factor"),
        ("x = '{0.__class__}'.format(1)", "format field"),
        ("x = '{:>999999999}'.format(1)", "format field"),
        ("x = '{0!r}'.format(1)", "format field"),
        ("x = '{}{}'.format(1)", "fails: .*range"),
        ("x = 'a'.join(['b'])", r"the call `'a'.join\(...\)`"),
        ("x = f'{1}'", "f-string"),
        ("x = lambda: 1", "lambda"),
        ("x = {i: 1 for i in [1]}", "dict comprehension"),
        ("x = (i for i in [1])", "generator expression"),
        ("x = [a for a, b in [(1, 2)]]", "unpacking"),
        ("x = {**{}}", r"`\*\*` inside a dict"),
        ("x = dict(**{})", r"`\*\*` inside a call"),
        ("x = dict([('a', 1)])", "dict.. with positional"),
        ("x = {(1, 2): 3}", "a dict key of type tuple"),
        ("x = {1}", "`Set`"),
        ("x = b'1'", "the literal b'1'"),
        ("x = 1j", "the literal 1j"),
        ("x = ...", "the literal Ellipsis"),
        ("x = 1 < 2", "`Compare`"),
        ("x = 1 and 2", "`BoolOp`"),
        ("x = 1 << 70", "operator `LShift`"),
        ("x = 'a' % 1", "`Mod` of str and int"),
        ("x = ~1", "`Invert` of int"),
        ("x = -'a'", "`USub` of str"),
        ("x = (y := 1)", "assignment expression"),
        ("x += 1", "augmented assignment"),
        ("x: int = 1", "`AnnAssign`"),
        ("x = [1]\nx[0] = 2", r"c.py:2: assignment to `x\[0\]`"),
        ("a, b = 1, 2", "assignment to"),
        ("list = 1", "reassignment of `list`"),
        ("import logging\nlogging = 1", "reassignment of `logging`"),
        ("def f(): pass", "function definition"),
        ("class A: pass", "class definition"),
        ("for i in [1]: pass", "`For`"),
        ("if True:\n    x = 1", "`If`"),
        ("print(1)", r"c.py:1: `Expr`"),
        ("del x", "`Delete`"),
        ("x = undefined", "the name `undefined`"),
        ("x = [1][5]", "fails: list index out of range"),
        ("x = dict(a=1)['b']", "fails: 'b'"),
        ("x = 1 / 0", "fails: division by zero"),
        ("x = (-8) ** 0.5", "complex"),
        ("x = (1", "c.py:1: not a readable Python file"),
        ("x = 1\0", "not a readable Python file"),
    ],
)
def test_everything_else_is_refused_with_its_line(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        interpret_config(source, "c.py")
    assert "\n" not in str(caught.value)


BOMBS = {
    "power": "x = 10**10**10",
    "power of a product": "x = (10**60 * 10**60)",
    "huge range": "x = list(range(10**9))",
    "range overflow": "x = range(2**62)",
    "repeated list": "x = [0] * 10**9",
    "repeated text": "x = 'a' * 10**9",
    "repeated format": "a = 'a' * 1999\nx = '{0}{0}{0}{0}'.format(a)",
    "big literal": f"x = {'9' * 4000}",
    "shared references": "a = [0] * 1000\nb = [a] * 1000\nc = [b] * 1000\n",
    "doubling": "a = [0]\n" + "a = [a, a]\n" * 200,
    "deep structure": "a = [0]\n" + "a = [a]\n" * 5000,
    "deep parentheses": f"x = {'[' * 150}{']' * 150}",
    "very deep parentheses": f"x = {'(' * 5000}1{')' * 5000}",
    "deep negation": f"x = {'-' * 20_000}1",
    "long sum": "x = 1" + " + 1" * 20_000,
    "nested loops": "r = range(9999)\nx = [0 for i in r for j in r for k in r if 0]",
    "chained lists": "import itertools\na = [0] * 9999\nx = list(itertools.chain(*[a] * 9999))",
    "many slices": "a = [0] * 9_000\nx = [0 for i in range(9_999) if not a[1:]]",
    "many sums": "x = [0 for i in range(9_999) if sum(range(9_000)) - sum(range(9_000))]",
    "many repetitions": "x = [0 for i in range(9_999) if not [i] * 9_000]",
    "many long texts": "a = 'a' * 1999\nx = [a + 'b' for i in range(9999)]\ny = 1 + x",
    "wide dict": "x = dict(a=[0] * 9_000, b=[0] * 9_000)",
}


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_are_refused_in_bounded_time_and_memory(source: str) -> None:
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(ConfigError):
            interpret_config(source, "bomb.py")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 5.0
    assert peak < 100e6
