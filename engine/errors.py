"""Errors a user can cause. The command line prints their one line and exits with 1."""

LONGEST_MESSAGE = 1000  # characters


class FlashElmoError(ValueError):
    """Bad input: one line that names the file, tensor or line, what was expected and what was found.

    What a file holds may stand in it: it is cut in the middle where it is too long, and no character of it ends the
    line or moves a terminal's cursor.
    """

    def __init__(self, message: object = "") -> None:
        text = _cut(str(message))
        if not text.isprintable():
            text = _cut("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))
        super().__init__(text)


class MissingExtraError(FlashElmoError, ImportError):
    """An optional package is absent; the message names the extra that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed: pip install 'flashelmo[{extra}]'"
        )


def first_line(error: BaseException) -> str:
    """What an error of any kind says, in one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def reason_of(error: BaseException) -> str:
    """The same without the number and the file's name that the system's errors have: where the file is named beside."""
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)


def _cut(text: str) -> str:
    """Begin and end of a long text."""
    half = LONGEST_MESSAGE // 2
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:half]} ... {text[5 - half :]}"
