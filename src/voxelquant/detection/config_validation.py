"""Validate config values; a failure becomes one line that names the field and how to mend it."""

import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from voxelquant.detection.config_schema import DetectorConfig
from voxelquant.errors import ConfigError


def validate_config(values: dict[str, Any], source: str) -> DetectorConfig:
    """Detector config of plain values.

    Args:
        values: nested dicts and lists, as read from a file.
        source: file or name that the values came from, for messages.

    Raises:
        ConfigError: an unknown, missing or unusable field; one line.
    """
    try:
        return DetectorConfig.model_validate(values)
    except ValidationError as error:
        raise _first_defect(source, error) from None
    except ConfigError as error:  # raised by the head spec, which knows no file
        raise ConfigError(f"{source}: {error}") from None


def nearest_key(key: str, known: Iterable[str]) -> str:
    """The known key most like the one that was written.

    >>> nearest_key("shared_conv_chanels", ["share_conv_channel", "init_bias"])
    'share_conv_channel'
    """
    return max(known, key=lambda name: difflib.SequenceMatcher(None, key, name).ratio())


def unknown_key_error(source: str, path: str, known: Iterable[str]) -> ConfigError:
    """Error for a key that no section knows; `path` is its dotted path."""
    known = list(known)
    hint = f"the nearest known key is `{nearest_key(path.split('.')[-1], known)}`" if known else ""
    return ConfigError(f"{source}: {path:.120}: unknown key; {hint or 'none is known here'}")


def _first_defect(source: str, error: ValidationError) -> ConfigError:
    defects = error.errors(include_url=False)
    # A misspelt key is also reported as a missing one: the unknown key is the cause.
    defect = next((d for d in defects if d["type"] == "extra_forbidden"), defects[0])
    location = list(defect["loc"])
    path = ".".join(map(str, location)) or "config"
    if defect["type"] == "extra_forbidden":
        return unknown_key_error(source, path, _fields_at(location[:-1]))
    if defect["type"] == "missing":
        return ConfigError(f"{source}: {path}: missing; this field has no default, give it a value")
    message = defect["msg"].removeprefix("Value error, ")
    got = "" if isinstance(defect["input"], dict) else f" (got {defect['input']!r:.80})"
    return ConfigError(" ".join(f"{source}: {path:.120}: {message}{got}".split()))


def _fields_at(location: list[Any]) -> list[str]:
    schema: type[BaseModel] = DetectorConfig
    for part in location:
        field = schema.model_fields.get(str(part))
        section = _section_type(field.annotation) if field else None
        if section is None:
            return []
        schema = section
    return list(schema.model_fields)


def _section_type(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        found = (_section_type(argument) for argument in typing.get_args(annotation))
        return next((section for section in found if section is not None), None)
    return None
