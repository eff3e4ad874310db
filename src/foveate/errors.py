"""Errors for people: what is wrong, where, and how to mend it, in a sentence."""

import importlib
from types import ModuleType


class FoveateError(Exception):
    """A mistake that a person can mend.

    The message is one sentence that names the thing, the place and the mend.
    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 2


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say in a sentence how to get it.

    Raises: FoveateError if `module` is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise FoveateError(
            f'this needs {error.name}, which is not installed: run pip install "foveate[{extra}]"'
        ) from error
