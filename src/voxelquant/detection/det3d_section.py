"""One dict of an original config, read key by key so that none is overlooked."""

from typing import Any

from voxelquant.detection.config_validation import unknown_key_error
from voxelquant.errors import ConfigError

_REQUIRED: Any = object()


class Det3dSection:
    """A dict of the original config; `close` refuses every key that was not taken."""

    def __init__(self, values: Any, path: str, source: str) -> None:
        self.path = path
        self.source = source
        if not isinstance(values, dict):
            raise self.error("", f"got a {type(values).__name__}, need a dict")
        self._values = dict(values)
        self._known: list[str] = []

    def error(self, key: str, message: str) -> ConfigError:
        """Error about a key of this section."""
        where = ".".join(part for part in (self.path, key) if part)
        return ConfigError(f"{self.source}: {where}: {message}")

    def take(self, key: str, default: Any = _REQUIRED) -> Any:
        """Value of a key, or the default; without a default the key must be there."""
        self._known.append(key)
        value = self._values.get(key, default)
        if value is _REQUIRED:
            raise self.error(key, "missing; this field has no default, give it a value")
        return value

    def section(self, key: str, default: Any = _REQUIRED) -> "Det3dSection":
        """A nested dict."""
        path = f"{self.path}.{key}" if self.path else key
        return Det3dSection(self.take(key, default), path, self.source)

    def take_list(self, key: str, default: Any = _REQUIRED) -> list[Any]:
        """Value of a key that must be a list."""
        values = self.take(key, default)
        if not isinstance(values, list | tuple):
            raise self.error(key, f"got a {type(values).__name__}, need a list")
        return list(values)

    def sections(self, key: str) -> "list[Det3dSection]":
        """A list of dicts."""
        values = self.take_list(key)
        path = f"{self.path}.{key}" if self.path else key
        return [Det3dSection(value, f"{path}.{i}", self.source) for i, value in enumerate(values)]

    def merged(self, key: str) -> dict[str, Any]:
        """A list of dicts, `[dict(car=2), dict(bus=4)]`, as one dict."""
        return {name: value for part in self.sections(key) for name, value in part._values.items()}

    def ignore(self, *keys: str) -> None:
        """Keys that exist in original configs and change nothing here."""
        for key in keys:
            self.take(key, None)

    def close(self) -> None:
        """Refuse the first key that was not taken."""
        for key in self._values:
            if key not in self._known:
                raise unknown_key_error(self.source, f"{self.path}.{key}", self._known)

    def require(self, key: str, supported: tuple[Any, ...], default: Any = _REQUIRED) -> Any:
        """A value out of a closed list; anything else is refused by name."""
        got = self.take(key, default)
        if got not in supported:
            choice = " or ".join(map(str, supported))
            raise self.error(key, f"{got} is not supported, only {choice} is")
        return got

    def refuse_flag(self, key: str, what: str) -> None:
        """Refuse, by name, a feature that is switched on."""
        if self.take(key, False):
            raise self.error(key, f"{what} is not supported; use a config without it")
