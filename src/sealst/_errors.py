"""Errors and warnings that sealst raises; each says what was expected, what was found and what to do."""


class SealstError(Exception):
    """Base of every error that sealst raises on purpose."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument, which would hide the message's line breaks.
        return str(self.args[0]) if self.args else ""


class MissingKeyError(SealstError, KeyError):
    """A slot, element or column that a call needs is absent."""


class DataError(SealstError, ValueError):
    """Data that cannot be used as it is: not counts, no spots, duplicate genes, wrong shapes."""


class ScaleError(DataError):
    """The physical scale (µm per pixel) or the coordinate system is unknown or contradictory."""


class PanelError(DataError):
    """A gene panel does not fit the data or the model."""


class LeakError(DataError):
    """A patient (or spot) stands on both sides of a split."""


class OrderError(SealstError, RuntimeError):
    """A call was made before the one it depends on."""


class WeightsError(SealstError, RuntimeError):
    """Pretrained weights could not be had or do not fit the encoder."""


class CheckpointError(SealstError, RuntimeError):
    """A model folder is incomplete, damaged, does not fit, or could not be fetched from or pushed to the hub."""


class InUseError(DataError):
    """Another process writes to this folder or file, or has changed it meanwhile."""


class StorageError(SealstError, OSError):
    """The system refuses to read or write: permission denied, a full disk, a name that is too long, and so on."""


class SealstWarning(UserWarning):
    """Something the user should know, with a result that is still right."""
