"""SHA-256 of files and texts, to tell whether two are the same."""

from hashlib import sha256
from pathlib import Path

_BLOCK_BYTES = 1 << 22


def file_digest(path: Path) -> str:
    """Hexadecimal digest of a file's content, read block by block."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def text_digest(text: str) -> str:
    """Hexadecimal digest of a text.

    >>> text_digest("abc")[:8]
    'ba7816bf'
    """
    return sha256(text.encode()).hexdigest()
