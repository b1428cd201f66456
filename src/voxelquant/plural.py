"""Numbers with their nouns, for messages and titles."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number and its noun, in the singular where there is one of it.

    Args:
        number: how many.
        noun: singular.
        plural: where it is not the singular with an s.

    >>> counted(1, "scene"), counted(0, "scene"), counted(2, "key frame")
    ('1 scene', '0 scenes', '2 key frames')
    >>> counted(3, "box", "boxes")
    '3 boxes'
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
