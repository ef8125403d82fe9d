"""The errors that a user can meet: each message is one sentence that names the value and the way out."""

from __future__ import annotations

import errno


class NiwakiError(Exception):
    """Bad input: a recipe, a file, a model or a folder that cannot be used as given."""

    exit_code = 2


class RecipeError(NiwakiError):
    """A recipe that cannot be read, has a wrong key or value, or asks for something impossible."""


class DataError(NiwakiError):
    """A data set that is missing, empty or damaged."""


class ImageError(DataError):
    """An image file that is missing or damaged; some of them may be left out."""


class ModelError(NiwakiError):
    """A model or a weight file that cannot be used."""


class ArtifactError(NiwakiError):
    """A saved network that is damaged, foreign or does not fit what it says of itself."""


class PlanError(NiwakiError):
    """A pruning plan that is not legal for the network it is applied to, or that cannot be made."""


class TrainingError(NiwakiError):
    """Training that cannot go on, such as a loss that is not finite."""

    exit_code = 1


class AcceptError(NiwakiError):
    """A finished run whose student misses what its recipe accepts."""

    exit_code = 1


class MissingError(NiwakiError):
    """Something that this machine or environment lacks."""

    exit_code = 3


class ElsewhereError(NiwakiError):
    """Another process of the same run failed and says so itself; this one ends in silence with the same exit code."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.exit_code = code


INTERRUPTED = 130


def said_by(error: BaseException, most: int = 120) -> str:
    """Return the first line of what an error of a library says, at most so long, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


def exit_code_of(error: BaseException) -> int:
    """Return an error's exit code: its own, 130 for Ctrl-C, 2 for a path that cannot be used, 3 for a full disk."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, MemoryError):
        return 3
    if isinstance(error, OSError):
        # A path that cannot be used is the user's to mend; a full disk and the like are the machine's.
        paths = FileNotFoundError | IsADirectoryError | NotADirectoryError | FileExistsError
        return 2 if isinstance(error, paths) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP) else 3
    return int(getattr(error, "exit_code", 1))
