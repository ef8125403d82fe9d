"""Code of the user's own: it runs only when the user names its module, never because a file does."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from compress.errors import NiwakiError

VARIABLE = "NIWAKI_TRUST"
"""The environment variable that pipelines set in place of `--trust`: modules with commas between them."""

# These answer to their own tables of names, or to nobody.
_NEVER = ("builtins", "compress", "cpp_ext", "deploy", "niwaki", "torch", "torchvision")


def trusted_modules(named: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the modules that the user trusts: those named on the command line, then those of `NIWAKI_TRUST`."""
    others = (name.strip() for name in os.environ.get(VARIABLE, "").split(","))
    return tuple(dict.fromkeys((*named, *(name for name in others if name))))


def trusted_function(target: str, trusted: Sequence[str], what: str, error: type[NiwakiError]) -> Callable[..., Any]:
    """Import a function of the user's own.

    Args:
        target: `module:function`.
        trusted: modules that the user named; one stands for what lies inside it too.
        what: what the function is for, as an error says it.
        error: what to raise.

    Raises:
        error: the module is not trusted or of the standard library, cannot be imported, or holds no such function.
    """
    check_trusted(target, trusted, f"the {what}", error)
    module, _, name = target.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError) as fault:
        raise error(f"The {what} '{target}' cannot be imported ({fault}).") from None
    if not callable(function):
        raise error(f"'{target}' is a {type(function).__name__}, not a function.")
    # What a trusted module merely imports from Python, torch or us is not the user's own.
    if _is_never_trusted(str(getattr(function, "__module__", "builtins"))):
        raise error(f"'{target}' is not a function of that module; name one that you wrote.")
    return function


def check_trusted(target: str, trusted: Sequence[str], what: str, error: type[NiwakiError]) -> None:
    """Raise `error` where the module of `module:function` is not one that the user trusts, or can never be."""
    module = target.partition(":")[0]
    said, shown = f"{what[:1].upper()}{what[1:]} '{target[:200]}'", module[:100]
    if _is_never_trusted(module):
        raise error(f"{said} is not a function of your own; name one of a module that you wrote.")
    if not _covered(module, trusted):
        raise error(
            f"{said} is code that would run on this machine; if you trust it, add --trust {shown} "
            f"(from Python: trusted=['{shown}'], in a pipeline: {VARIABLE}={shown})."
        )


def _covered(module: str, trusted: Sequence[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in trusted)


def _is_never_trusted(module: str) -> bool:
    root = module.partition(".")[0]
    return root in sys.stdlib_module_names or root in _NEVER
