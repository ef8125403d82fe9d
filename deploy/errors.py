"""Define the errors that users see; each message is one sentence with the value received and the way out."""

from __future__ import annotations


class DeployError(Exception):
    """Input that cannot be used as it is.

    The command line prints the message and exits with ``exit_code``; it shows no traceback.
    """

    exit_code: int = 2


class MissingDependency(DeployError):  # noqa: N818  (the name says what is wrong)
    """An optional package that is not installed; the message says how to get it."""

    exit_code: int = 3
