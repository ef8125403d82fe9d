"""The errors that a user can meet: each message is one sentence that names the value and the way out."""

from __future__ import annotations


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


class MissingError(NiwakiError):
    """Something that this machine or environment lacks."""

    exit_code = 3
