"""Load a detector config by bundled name, from our YAML or from an original CenterPoint file."""

from importlib import resources
from pathlib import Path

import yaml

from voxelquant.detection.config_files import parse_yaml, read_config_text
from voxelquant.detection.config_import import import_det3d_config
from voxelquant.detection.config_interpreter import interpret_config
from voxelquant.detection.config_schema import DetectorConfig, Reader
from voxelquant.detection.config_validation import nearest_key, validate_config
from voxelquant.errors import ConfigError

__all__ = ["DetectorConfig", "Reader", "bundled_config_names", "config_to_yaml", "load_config"]

_BUNDLED = resources.files("voxelquant.detection") / "configs"


def bundled_config_names() -> list[str]:
    """Names that `load_config` knows without a file.

    >>> "centerpoint_tiny" in bundled_config_names()
    True
    """
    names = (entry.name for entry in _BUNDLED.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_config(name_or_path: str | Path) -> DetectorConfig:
    """Config of a bundled name, of a YAML file of ours, or of an original CenterPoint `.py`.

    A `.py` config is interpreted over a whitelist of constructs, never executed.

    Args:
        name_or_path: a bundled name, or a path that ends in `.yaml`, `.yml` or `.py`.

    Raises:
        ConfigError: no such config, an unknown or unusable field, or a construct that is not
            allowed; one line with file, field or line, and what to do.

    >>> load_config("centerpoint_voxel0075").grid_xyz
    (1440, 1440, 40)
    """
    known = bundled_config_names()
    if str(name_or_path) in known:
        source = f"{name_or_path}.yaml"
        text = (_BUNDLED / source).read_text(encoding="utf-8")
        return validate_config(parse_yaml(text, source), source)
    path = Path(name_or_path)
    if path.suffix not in (".py", ".yaml", ".yml"):
        raise ConfigError(
            f"{name_or_path}: no such config; the nearest bundled one is "
            f"`{nearest_key(path.name, known)}` of {', '.join(known)}; or give a .yaml or .py file"
        )
    text = read_config_text(path)
    if path.suffix == ".py":
        return import_det3d_config(interpret_config(text, str(path)), str(path))
    return validate_config(parse_yaml(text, str(path)), str(path))


def config_to_yaml(config: DetectorConfig) -> str:
    """The resolved config as a YAML file that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None)
