"""Every error featpipe raises on purpose, with the exit code it becomes.

A message is one line: what was expected, what was found, what to do next.
"""

from typing import NamedTuple


class FeatpipeError(Exception):
    """Base class of all expected errors; any other exception is a bug."""

    exit_code = 1


def other_version(what: str, found: object, known: int) -> str:
    """Part of an error message about a file that another version of featpipe wrote."""
    is_newer = isinstance(found, int) and found > known
    hint = " (a newer featpipe wrote it: update featpipe)" if is_newer else ""
    return f"{what} {found!r}; this featpipe reads {known}{hint}"


class UsageError(FeatpipeError, ValueError):
    """An option or a recipe key has an invalid value."""

    exit_code = 2


class OwnCodeError(UsageError):
    """Code of the user's own is not permitted, cannot be imported, or does not work."""


class NotFoundError(FeatpipeError, LookupError):
    """No such cache, data set, head or input."""

    exit_code = 10


class InUseError(FeatpipeError):
    """Something may not be taken away, because another process is using it."""


class SpaceMismatchError(FeatpipeError, ValueError):
    """A head was given features of a feature space other than its own."""

    exit_code = 12


class DamageError(FeatpipeError):
    """The content of a stored file does not match its format, name or checksums."""

    exit_code = 13


class StorageError(FeatpipeError, OSError):
    """Reading or writing failed, or the disk is full."""

    exit_code = 74


class DataError(FeatpipeError, ValueError):
    """The given pictures, labels or splits cannot be used."""


class WeightsError(FeatpipeError, RuntimeError):
    """The backbone's weights cannot be obtained, or are not the expected ones."""


class FeatureOverflowError(FeatpipeError, ArithmeticError):
    """A feature does not fit the stored dtype (infinite or not a number)."""


class OutOfMemoryError(FeatpipeError, MemoryError):
    """A device has too little memory for the smallest piece of work."""


class CheckError(FeatpipeError):
    """What was made does not do what it should, so it was not kept."""


class MissingPackageError(FeatpipeError, ImportError):
    """Something was asked for that needs a package of one of the optional extras."""


class Reason(NamedTuple):
    """Why a picture cannot be used.

    Attributes
    ----------
    stage : str
        Where it failed: ``read``, ``open``, ``decode``, ``convert``, ``resize`` or ``worker``.
    text : str
        One-line explanation for the user.
    """

    stage: str
    text: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.text}"


class BadImageError(FeatpipeError, ValueError):
    """One image cannot be used; it is quarantined and the job continues.

    Parameters
    ----------
    stage : str
        Where it failed: ``read``, ``open``, ``decode``, ``convert``, ``resize`` or
        ``worker``.
    reason : str
        One-line explanation for the user.
    detail : str
        What the decoder said itself, for who looks for a bug; may be empty.
    """

    def __init__(self, stage: str, reason: str, *, detail: str = "") -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.reason = reason
        self.detail = detail
