"""Read an original CenterPoint `.py` config without executing it.

The original configs are Python programs, so loading one the original way runs whatever it holds.
This interpreter walks the syntax tree and knows a closed list of constructs (the ones that the
released configs use); everything else is refused with file, line and construct. Sizes, depth and
work are bounded, so that a hostile file can neither run code nor exhaust memory.
"""

import ast
import warnings
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, NoReturn

from voxelquant.detection.interpreter_values import (
    MAX_STEPS,
    InterpretationError,
    ValueLedger,
    add_up,
    binary_operation,
    chain_lists,
    downsample_factor,
    format_text,
    integer_range,
    make_dict,
    make_list,
    negate,
)
from voxelquant.errors import ConfigError

_MAX_NESTING = 60
_IMPORTS = {
    ("itertools", None): "itertools",
    ("logging", None): "logging",
    ("det3d.utils.config_tool", "get_downsample_factor"): "get_downsample_factor",
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "list": make_list,
    "dict": make_dict,
    "sum": add_up,
    "range": integer_range,
}
_MODULE_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("itertools", "chain"): chain_lists,
    ("logging", "getLogger"): lambda *_name: None,  # a logger is no fact of a detector
}
_CONSTRUCT_NAMES = {
    "AugAssign": "augmented assignment",
    "FunctionDef": "function definition",
    "ClassDef": "class definition",
    "JoinedStr": "f-string",
    "Lambda": "lambda",
    "DictComp": "dict comprehension",
    "SetComp": "set comprehension",
    "GeneratorExp": "generator expression",
    "NamedExpr": "assignment expression",
}


def interpret_config(source: str, filename: str) -> dict[str, Any]:
    r"""Evaluate the assignments of a CenterPoint config and return its module-level names.

    Args:
        source: text of the config.
        filename: path of the config; the config sees it as `__file__`.

    Raises:
        ConfigError: the text is not Python, or uses a construct outside the whitelist; the
            message holds file, line and construct.

    >>> interpret_config("a = [1, 2]\nb = dict(total=sum(a))", "example.py")
    {'a': [1, 2], 'b': {'total': 3}}
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the config's own escapes and comparisons
            tree = ast.parse(source, filename)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        reason = getattr(error, "msg", None) or str(error) or type(error).__name__
        raise ConfigError(f"{filename}:{line}: not a readable Python file ({reason})") from None
    return _Interpreter(filename).run(tree)


class _Interpreter:
    """Evaluates one module; holds its names, its imports and the work spent so far."""

    def __init__(self, filename: str) -> None:
        self.filename = filename
        self.names: dict[str, Any] = {}
        self.imports: set[str] = set()
        self.functions = dict(_FUNCTIONS)
        self.steps = 0
        self.nesting = 0
        self.ledger = ValueLedger()

    def run(self, tree: ast.Module) -> dict[str, Any]:
        for statement in tree.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self._import(statement)
            elif isinstance(statement, ast.Assign):
                self._assign(statement)
            elif not self._is_docstring(statement):
                self._refuse(statement, self._describe(statement))
        return {name: value for name, value in self.names.items() if not name.startswith("__")}

    def _refuse(self, node: ast.AST, what: str) -> NoReturn:
        line = getattr(node, "lineno", 1)
        raise ConfigError(
            f"{self.filename}:{line}: {what} is not allowed in a config: it is read, never "
            "executed; write the value out, or use a YAML config"
        )

    def _describe(self, node: ast.AST) -> str:
        kind = type(node).__name__
        name = _CONSTRUCT_NAMES.get(kind, f"`{kind}`")
        text = ast.unparse(node).splitlines()[0] if not isinstance(node, ast.Expr) else ""
        return f"{name} ({text[:60]})" if text else name

    @staticmethod
    def _is_docstring(statement: ast.stmt) -> bool:
        return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)

    def _import(self, statement: ast.Import | ast.ImportFrom) -> None:
        for alias in statement.names:
            if isinstance(statement, ast.Import):
                key: tuple[str, str | None] = (alias.name, None)
            else:
                key = (statement.module or "", alias.name)
            if key not in _IMPORTS or alias.asname:
                self._refuse(statement, f"`{ast.unparse(statement)}`")
            self.imports.add(_IMPORTS[key])
            if _IMPORTS[key] == "get_downsample_factor":
                self.functions["get_downsample_factor"] = downsample_factor

    def _assign(self, statement: ast.Assign) -> None:
        value = self.evaluate(statement.value)
        for target in statement.targets:
            if not isinstance(target, ast.Name):
                self._refuse(statement, f"assignment to `{ast.unparse(target)[:60]}`")
            if target.id in self.functions or target.id in self.imports:
                self._refuse(statement, f"reassignment of `{target.id}`")
            self.names[target.id] = value

    def evaluate(self, node: ast.expr) -> Any:
        """Value of an expression; every failure names file and line."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            self._refuse(node, f"a computation of more than {MAX_STEPS} steps")
        handler: Callable[[Any], Any] | None = getattr(self, f"_eval_{type(node).__name__}", None)
        if handler is None:
            self._refuse(node, self._describe(node))
        self.nesting += 1
        if self.nesting > _MAX_NESTING:
            self._refuse(node, f"nesting deeper than {_MAX_NESTING} levels")
        try:
            return self.ledger.admit(handler(node))
        except InterpretationError as error:
            self._refuse(node, str(error))
        except (TypeError, ValueError, LookupError, ArithmeticError) as error:
            message = f"{self.filename}:{node.lineno}: `{ast.unparse(node)[:60]}` fails: {error}"
            raise ConfigError(message) from None
        finally:
            self.nesting -= 1

    def _eval_Constant(self, node: ast.Constant) -> Any:
        if node.value is not None and not isinstance(node.value, bool | int | float | str):
            self._refuse(node, f"the literal {node.value!r:.60}")
        return node.value

    def _eval_Name(self, node: ast.Name) -> Any:
        if node.id == "__file__":
            return self.filename if "/" in self.filename else f"./{self.filename}"
        if node.id not in self.names:
            self._refuse(node, f"the name `{node.id}` (neither assigned above nor known)")
        return self.names[node.id]

    def _items(self, nodes: list[ast.expr]) -> Iterator[Any]:
        for node in nodes:
            if isinstance(node, ast.Starred):
                yield from self._sequence(node.value)
            else:
                yield self.evaluate(node)

    def _sequence(self, node: ast.expr) -> Sequence[Any]:
        value = self.evaluate(node)
        if not isinstance(value, list | tuple | range):
            self._refuse(node, f"iteration over a {type(value).__name__}")
        return value

    def _eval_List(self, node: ast.List) -> list[Any]:
        return list(self._items(node.elts))

    def _eval_Tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self._items(node.elts))

    def _eval_Dict(self, node: ast.Dict) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key_node, value_node in zip(node.keys, node.values, strict=True):
            if key_node is None:
                self._refuse(node, "`**` inside a dict")
            key = self.evaluate(key_node)
            if not isinstance(key, str | int | float):
                self._refuse(key_node, f"a dict key of type {type(key).__name__}")
            result[key] = self.evaluate(value_node)
        return result

    def _eval_ListComp(self, node: ast.ListComp) -> list[Any]:
        outer = dict(self.names)
        try:
            return list(self._comprehend(node.elt, node.generators))
        finally:
            self.names = outer

    def _comprehend(self, element: ast.expr, loops: list[ast.comprehension]) -> Iterator[Any]:
        if not loops:
            yield self.evaluate(element)
            return
        loop = loops[0]
        if not isinstance(loop.target, ast.Name):
            self._refuse(loop.target, "unpacking in a comprehension")
        for item in self._sequence(loop.iter):
            self.names[loop.target.id] = item
            if all(self.evaluate(condition) for condition in loop.ifs):
                yield from self._comprehend(element, loops[1:])

    def _eval_IfExp(self, node: ast.IfExp) -> Any:
        return self.evaluate(node.body if self.evaluate(node.test) else node.orelse)

    def _eval_UnaryOp(self, node: ast.UnaryOp) -> Any:
        return negate(node.op, self.evaluate(node.operand))

    def _eval_BinOp(self, node: ast.BinOp) -> Any:
        return binary_operation(node.op, self.evaluate(node.left), self.evaluate(node.right))

    def _eval_Subscript(self, node: ast.Subscript) -> Any:
        value = self.evaluate(node.value)
        if not isinstance(node.slice, ast.Slice):
            return value[self.evaluate(node.slice)]
        parts = (node.slice.lower, node.slice.upper, node.slice.step)
        return value[slice(*(None if part is None else self.evaluate(part) for part in parts))]

    def _eval_Call(self, node: ast.Call) -> Any:
        function = self._callee(node)
        positional = list(self._items(node.args))
        keywords: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                self._refuse(node, "`**` inside a call")
            keywords[keyword.arg] = self.evaluate(keyword.value)
        self.ledger.spend(sum(len(value) for value in positional if isinstance(value, Sized)))
        return function(*positional, **keywords)

    def _callee(self, node: ast.Call) -> Callable[..., Any]:
        callee = node.func
        found: Callable[..., Any] | None = None
        if isinstance(callee, ast.Name) and callee.id in self.functions:
            found = self.functions[callee.id]
        elif isinstance(callee, ast.Attribute):
            found = self._method(callee)
        if found is None:
            self._refuse(node, f"the call `{ast.unparse(callee)[:60]}(...)`")
        return found

    def _method(self, callee: ast.Attribute) -> Callable[..., Any] | None:
        owner = callee.value
        if isinstance(owner, ast.Name) and owner.id in self.imports:
            return _MODULE_FUNCTIONS.get((owner.id, callee.attr))
        if callee.attr not in ("format", "rfind"):
            return None
        text = self.evaluate(owner)
        if not isinstance(text, str):
            return None
        return text.rfind if callee.attr == "rfind" else lambda *args: format_text(text, args)
