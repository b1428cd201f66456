"""The arrows of the house point down, and this test is what keeps them so."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "voxelquant"

SHARED = {"errors", "atomic_file", "digest", "plural"}
FOUNDATION = {"numerics", "geometry"}
SPARSE = FOUNDATION | {"sparse"}
QUANT = SPARSE | {"quant"}
# What each room may import besides itself and what is shared.
ALLOWED: dict[str, set[str]] = {
    **{name: set() for name in SHARED},
    "numerics": set(),
    "geometry": set(),
    "sparse": FOUNDATION,
    "quant": SPARSE,
    "detection": QUANT,
    "data": QUANT,
    "export": QUANT,
    "evaluation": QUANT,
    "report": QUANT,
    "recipes": QUANT | {"detection", "data", "export", "evaluation", "report"},
    "cli": {"recipes"},
    "__main__": {"cli"},
}
# The exported file is judged by code that has never seen the quantizers that made it.
INDEPENDENT_OF_QUANT = ("export/runner.py", "export/libspconv_reader.py", "export/validate.py")


def module_name(path: Path) -> str:
    """`src/voxelquant/sparse/voxelize.py` is `voxelquant.sparse.voxelize`."""
    parts = ("voxelquant", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(path: Path, source: str | None = None) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every import of our own, wherever in the file it stands."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(source if source is not None else path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            anchor = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*anchor, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            names = [
                argument.value
                for argument in node.args
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            ]
        for name in names:
            if name.split(".")[0] == "voxelquant":
                yield getattr(node, "lineno", 0), name


def upward_imports(path: Path, source: str | None = None) -> list[str]:
    """Every import of the file that the arrows forbid, as `file:line imports name`."""
    room = path.relative_to(SOURCE).with_suffix("").parts[0]
    permitted = ALLOWED[room] | SHARED | {room, "__version__"}
    return [
        f"{path.relative_to(SOURCE)}:{line} imports {name}"
        for line, name in imported_names(path, source)
        if name.partition(".")[2].partition(".")[0] not in permitted
    ]


def modules_reached(path: Path) -> set[Path]:
    """Files of ours that importing this one executes, package `__init__` files included."""
    reached: set[Path] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in reached:
            continue
        reached.add(current)
        for _, name in imported_names(current):
            parts = name.split(".")[1:]
            for depth in range(1, len(parts) + 1):
                stem = SOURCE.joinpath(*parts[:depth])
                waiting += [
                    f for f in (stem.with_suffix(".py"), stem / "__init__.py") if f.exists()
                ]
        if current.parent != SOURCE:
            waiting.append(current.parent / "__init__.py")
    return reached


def source_files() -> list[Path]:
    """Every file of the package but its root, which re-exports the API lazily."""
    return sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    assert upward_imports(path) == []


@pytest.mark.parametrize("name", INDEPENDENT_OF_QUANT)
def test_exported_files_are_judged_without_quant(name: str) -> None:
    rooms = {reached.relative_to(SOURCE).parts[0] for reached in modules_reached(SOURCE / name)}
    assert rooms <= SPARSE | {"export", "errors.py", "atomic_file.py", "plural.py"}


@pytest.mark.parametrize(
    ("file", "source", "forbidden"),
    [
        ("sparse/modules.py", "from voxelquant.detection import config", True),
        ("sparse/modules.py", "def f():\n    from ..quant.fold import fold_batchnorm", True),
        ("sparse/modules.py", "from ..numerics import quantize", False),
        ("sparse/modules.py", "from . import functional", False),
        ("data/frame.py", "import voxelquant.detection.config", True),
        ("numerics/formats.py", "import voxelquant.geometry", True),
        ("quant/fold.py", "import importlib\nimportlib.import_module('voxelquant.export')", True),
        ("export/writer.py", "import voxelquant", True),
        ("export/writer.py", "from voxelquant import errors, quant", False),
        ("cli/train.py", "from voxelquant.sparse import voxelize", True),
        ("recipes/train.py", "from voxelquant import __version__, data, detection", False),
    ],
)
def test_the_checker_itself(file: str, source: str, forbidden: bool) -> None:
    assert bool(upward_imports(SOURCE / file, source)) is forbidden
