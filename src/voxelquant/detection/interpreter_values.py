"""The values that an interpreted config may hold, and the operations on them, all bounded."""

import ast
import math
import operator
import string
from collections.abc import Callable, Sequence
from typing import Any

MAX_STEPS = 20_000
_MAX_INTEGER = 2**62
_MAX_TEXT = 2_000
_MAX_TREE = 10_000
_MAX_WORK = 100_000
_MAX_DEPTH = 40
_MAX_EXPONENT = 64

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}


class InterpretationError(Exception):
    """A value or operation outside the whitelist; the interpreter adds file and line."""


class ValueLedger:
    """Size and depth of every container made so far, so that shared references cannot explode.

    `b = [a] * 1000` costs nothing in Python but is a thousand copies of `a` for whoever walks the
    result; the ledger counts it as such. It also counts the elements handled in all.
    """

    def __init__(self) -> None:
        self._work = 0
        self._known: dict[int, tuple[Any, int, int]] = {}  # id -> (keeps it alive, size, depth)

    def spend(self, n_elements: int) -> None:
        """Count elements that an operation is about to walk over.

        Raises:
            InterpretationError: the config has walked over too many.
        """
        self._work += n_elements
        if self._work > _MAX_WORK:
            raise InterpretationError(f"work on more than {_MAX_WORK} elements")

    def admit(self, value: Any) -> Any:
        """Return `value` if it is small enough.

        Raises:
            InterpretationError: too large an integer, text, tree or nesting.
        """
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise InterpretationError("an integer beyond 2**62")
        if isinstance(value, str) and len(value) > _MAX_TEXT:
            raise InterpretationError(f"a text longer than {_MAX_TEXT} characters")
        if isinstance(value, list | tuple | dict) and id(value) not in self._known:
            self.spend(len(value))
            children = value.values() if isinstance(value, dict) else value
            measured = [self._measure(child) for child in children]
            size = 1 + sum(size for size, _ in measured)
            depth = 1 + max((depth for _, depth in measured), default=0)
            if size > _MAX_TREE:
                raise InterpretationError(f"a structure of more than {_MAX_TREE} elements")
            if depth > _MAX_DEPTH:
                raise InterpretationError(f"a structure nested deeper than {_MAX_DEPTH}")
            self._known[id(value)] = (value, size, depth)
        return value

    def _measure(self, value: Any) -> tuple[int, int]:
        if not isinstance(value, list | tuple | dict):
            return 1, 0
        self.admit(value)
        _, size, depth = self._known[id(value)]
        return size, depth


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def binary_operation(kind: ast.operator, left: Any, right: Any) -> Any:
    """Arithmetic on numbers; `+` also joins sequences, `*` also repeats them."""
    function = _BINARY.get(type(kind))
    if function is None:
        raise InterpretationError(f"the operator `{type(kind).__name__}`")
    if _is_number(left) and _is_number(right):
        if isinstance(kind, ast.Pow) and (abs(right) > _MAX_EXPONENT or abs(left) > _MAX_INTEGER):
            raise InterpretationError(f"a power with an exponent beyond {_MAX_EXPONENT}")
        result = function(left, right)
        if isinstance(result, complex):
            raise InterpretationError("a complex number")
        return result
    if isinstance(kind, ast.Add) and type(left) is type(right) and isinstance(left, list | str):
        return left + right
    if isinstance(kind, ast.Add) and isinstance(left, tuple) and isinstance(right, tuple):
        return left + right
    if isinstance(kind, ast.Mult):
        sequence, count = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(sequence, list | tuple | str) and isinstance(count, int):
            if len(sequence) * count > _MAX_TREE:
                raise InterpretationError(f"a sequence of more than {_MAX_TREE} elements")
            return sequence * count
    raise InterpretationError(
        f"`{type(kind).__name__}` of {type(left).__name__} and {type(right).__name__}"
    )


def negate(kind: ast.unaryop, value: Any) -> Any:
    """`-x`, `+x` of a number, `not x` of anything."""
    function = _UNARY.get(type(kind))
    if function is None or not (isinstance(kind, ast.Not) or _is_number(value)):
        raise InterpretationError(f"`{type(kind).__name__}` of {type(value).__name__}")
    return function(value)


def integer_range(*bounds: Any) -> range:
    """`range(...)` of at most as many elements as a structure may have."""
    if not all(isinstance(bound, int) and abs(bound) <= _MAX_TREE for bound in bounds):
        raise InterpretationError(f"range() beyond ±{_MAX_TREE}")
    return range(*bounds)


def add_up(values: Any, start: Any = 0) -> Any:
    """`sum(...)` of numbers."""
    if not isinstance(values, list | tuple | range) or not all(map(_is_number, [*values, start])):
        raise InterpretationError("sum() of anything but numbers")
    return sum(values, start)


def chain_lists(*parts: Any) -> list[Any]:
    """`itertools.chain(...)` of lists, tuples and ranges, as a list."""
    if not all(isinstance(part, list | tuple | range) for part in parts):
        raise InterpretationError("itertools.chain() of anything but lists")
    if sum(map(len, parts)) > _MAX_TREE:
        raise InterpretationError(f"a sequence of more than {_MAX_TREE} elements")
    return [item for part in parts for item in part]


def format_text(template: str, values: Sequence[Any]) -> str:
    """`str.format` with plain `{}` and `{0}` fields only: no attributes, no format specs."""
    automatic = iter(range(len(values)))
    pieces: list[str] = []
    for literal, field, spec, conversion in string.Formatter().parse(template):
        pieces.append(literal)
        if field is None:
            continue
        if spec or conversion or not (field == "" or field.isdecimal()):
            raise InterpretationError(f"the format field `{{{field}}}` with more than a position")
        index = next(automatic, len(values)) if field == "" else int(field)
        value = values[index]
        if not isinstance(value, str | int | float):
            raise InterpretationError(f"str.format of a {type(value).__name__}")
        pieces.append(str(value))
    return "".join(pieces)


def downsample_factor(model: Any, **ignored: Any) -> int:
    """`get_downsample_factor` of det3d: backbone factor · neck strides / last upsampling."""
    stage = model if "neck" in model else model["first_stage_cfg"]
    neck, backbone = stage["neck"], stage["backbone"]
    factor: float = math.prod(neck.get("ds_layer_strides", [1]))
    upsampling = neck.get("us_layer_strides", [])
    if upsampling:
        factor /= upsampling[-1]
    return int(factor * backbone["ds_factor"])


def make_list(*values: Any) -> list[Any]:
    """`list()` of one list, tuple or range."""
    if len(values) > 1 or (values and not isinstance(values[0], list | tuple | range)):
        raise InterpretationError("list() of anything but one list, tuple or range")
    return list(values[0]) if values else []


def make_dict(*positional: Any, **fields: Any) -> dict[str, Any]:
    """`dict()` of keywords."""
    if positional:
        raise InterpretationError("dict() with positional arguments")
    return fields
