"""A package's public names, imported on first use, so that importing the package loads nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def on_first_use(
    package: dict[str, Any], homes: Mapping[str, str], needs: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` (PEP 562) of a package, whose `__all__` is made likewise.

    Args:
        package: its globals.
        homes: public name -> module that defines it.
        needs: public name -> packages of extras, without which that module cannot be imported. While one is missing,
            the name is not listed: `help` and `import *` read every name that is.
    """

    def missing() -> set[str]:
        from importlib.util import find_spec

        return {name for name, packages in needs.items() if not all(map(find_spec, packages))}

    def get(name: str) -> Any:
        if name == "__all__":
            return sorted((homes.keys() | package.keys() & {"__version__"}) - missing())
        if name not in homes:
            raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        package[name] = getattr(import_module(homes[name]), name)
        return package[name]

    return get, lambda: sorted((package.keys() | homes.keys()) - missing())
