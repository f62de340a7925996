"""Errors that users can cause. The command line prints them as one line and exits with 1."""

import sys
from functools import partial
from typing import Any

LONGEST_MESSAGE = 1000  # characters


class FlashElmoError(ValueError):
    """Bad input: one line that names the file, tensor or line, what was expected and what was found.

    It may quote a file's contents: it is shortened in the middle if it is too long, and no character in it ends the
    line or moves a terminal's cursor.
    """

    def __init__(self, message: object = "") -> None:
        text = _cut(str(message))
        if not text.isprintable():
            text = _cut("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))
        super().__init__(text)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, as a pool of processes makes of what one of them raised, has the message, not the arguments."""
        return partial(type(self).__new__, type(self)), self.args, self.__dict__ or None


class MissingExtraError(FlashElmoError, ImportError):
    """An optional package is missing, and the message names the extra that installs it; or it says why it fails."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        why = f"is not installed: pip install 'flashelmo[{extra}]'"
        failed = sys.exc_info()[1]  # the import, where one was tried
        if isinstance(failed, ImportError) and not isinstance(failed, ModuleNotFoundError | FlashElmoError):
            why = f"cannot be imported: {first_line(failed)}"  # say it was built for another numpy
        super().__init__(f"{purpose} needs the package {package}, which {why}")


class OtherSystemError(FlashElmoError, ImportError):
    """An optional package is missing that this system does not have: no extra installs it."""


def first_line(error: BaseException) -> str:
    """Return an error's message in one line; its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def reason_of(error: BaseException) -> str:
    """Return it without the number and file name of the system's errors, for use where the file is named anyway."""
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)


def _cut(text: str) -> str:
    """Return the beginning and the end of a long text."""
    half = LONGEST_MESSAGE // 2
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:half]} ... {text[5 - half :]}"
