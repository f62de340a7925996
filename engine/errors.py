"""Errors a user can cause. The command line prints their one line and exits with 1."""


class FlashElmoError(ValueError):
    """Bad input: one line that names the file, tensor or line, what was expected and what was found."""

    def __init__(self, message: object = "") -> None:
        super().__init__(" ".join(str(message).splitlines()))  # names of files may have several lines


class MissingExtraError(FlashElmoError, ImportError):
    """An optional package is absent; the message names the extra that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed: pip install 'flashelmo[{extra}]'"
        )
