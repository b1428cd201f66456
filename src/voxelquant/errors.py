"""The exception tree: whatever the user can mend derives from `BadInputError`.

The command line prints the message of a `BadInputError` as one line and exits with code 2; every
other exception is a defect of ours and keeps its traceback. A message says what we got, what we
need and what to do.
"""


class VoxelquantError(Exception):
    """Root of every error raised on purpose by this package."""


class MissingDependencyError(VoxelquantError):
    """An optional package is needed for this call; the message names the extra to install."""


class AnotherProcessFailedError(VoxelquantError):
    """Of the processes of one run another one failed; it tells the user, this one just ends."""


class BadInputError(VoxelquantError):
    """The user's input cannot be used; the message says how to mend it."""


class ConfigError(BadInputError):
    """A config file or recipe is malformed, unknown or unsafe."""


class CheckpointError(BadInputError):
    """A checkpoint is unreadable, unsafe, of another model, or holds values that are not finite."""


class DatasetError(BadInputError):
    """A dataset is missing, truncated or inconsistent."""


class GeometryError(BadInputError):
    """Coordinates, shapes or conv parameters that do not fit together."""


class BackendError(BadInputError):
    """The chosen execution of the sparse ops does not run these operands on this machine."""


class CalibrationError(BadInputError):
    """A range was read before it was calibrated, or calibration saw unusable data."""


class QuantStateError(BadInputError):
    """A quantization state does not fit the model, or its weights break the storage law."""


class GraphError(BadInputError):
    """The model computes something that the sparse graph cannot express."""


class ExportError(BadInputError):
    """The model cannot be written in the requested dialect."""


class GateError(BadInputError):
    """What was to be timed computes something else than the reference; nothing was timed."""
