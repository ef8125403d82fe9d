"""Errors that a user may meet; each message is one sentence with the value received and the way out."""

from __future__ import annotations


class DeployError(Exception):
    """Something the user gave cannot be used as it is.

    The command line prints the message and exits with ``exit_code``; no traceback is shown.
    """

    exit_code: int = 2


class MissingDependency(DeployError):  # noqa: N818  (the name says what to do about it)
    """An optional package is not installed; the message says how to get it."""

    exit_code: int = 3
