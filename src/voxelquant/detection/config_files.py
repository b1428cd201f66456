"""Config files in YAML: a bounded, alias-free subset, so that a file cannot explode when read."""

from pathlib import Path
from typing import Any

import yaml

from voxelquant.errors import ConfigError

_MAX_BYTES = 256 * 1024
_MAX_DEPTH = 20


def read_config_text(path: Path) -> str:
    """Text of a config file.

    Raises:
        ConfigError: not there, not a file, larger than 256 KiB or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give a config file"
        ) from None
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"{path}: larger than {_MAX_BYTES // 1024} KiB, this is not a config")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text, this is not a config") from None


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    r"""Mapping at the top of a YAML document.

    Raises:
        ConfigError: not YAML, an alias, a repeated key, deep nesting, or no mapping at the top.

    >>> parse_yaml("name: tiny\ntasks: [[car]]", "example.yaml")
    {'name': 'tiny', 'tasks': [['car']]}
    """
    try:
        _refuse_bombs(text, source)
        # Safe: `_UniqueKeyLoader` is a SafeLoader, which makes plain values only.
        values = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError) as error:
        line = _line(getattr(error, "problem_mark", None))
        reason = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{source}{line}: not a readable YAML file ({reason})") from None
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise ConfigError(f"{source}: got a {kind} at the top, need `key: value` lines")
    return values


def _refuse_bombs(text: str, source: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(
                f"{source}{_line(event.start_mark)}: got the alias *{event.anchor}; write it out"
            )
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            where = f"{source}{_line(event.start_mark)}"
            raise ConfigError(f"{where}: nested deeper than {_MAX_DEPTH} levels")


def _line(mark: Any) -> str:
    return f":{mark.line + 1}" if mark else ""


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a repeated key instead of keeping the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"repeated key {name!r}", problem_mark=key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep=deep)
