"""What a file is that was given for weights and cannot be read as such."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

INDEX_SUFFIX = ".safetensors.index.json"
_INDEX = "an index of shards"
_MOST_BYTES = 64 << 20  # of a text that is read: an index has about a hundred bytes a tensor
_PICKLE = b"\x80"  # how every protocol above 1 begins


def text_kind(path: Path) -> str | None:
    """What a file of text is, as the object of "got"; None for other files.

    >>> text_kind(Path(__file__))
    'text'
    """
    try:
        content = path.read_bytes() if path.stat().st_size <= _MOST_BYTES else b"\0"
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if "\0" in text or not text.strip():
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # nested deeper than anything of use
        return "text"
    return _INDEX if isinstance(found, dict) and "weight_map" in found else "JSON"


def why_no_weights(path: Path) -> str | None:
    """What a file is and what is needed, where it is no damaged file of what its name says."""
    named_safetensors = path.suffix == ".safetensors"
    kind, ending = text_kind(path), INDEX_SUFFIX
    if kind is None:
        with path.open("rb") as file:
            start = file.read(9)
        # A safetensors file is the length of its header, then the header, which is JSON.
        if start[8:] == b"{" and not named_safetensors:
            kind, ending = "a safetensors file", ".safetensors"
        elif named_safetensors and (start[:1] == _PICKLE or zipfile.is_zipfile(path)):
            kind, ending = "a torch file", ".pth"
        else:
            return None
    elif kind != _INDEX:
        return (
            f"got {kind}, need weights: a .safetensors file, the index of several "
            f"(*{INDEX_SUFFIX}) or a torch checkpoint"
        )
    return f"got {kind}, need a name that ends in {ending}; rename it"
