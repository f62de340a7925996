"""Another name of `verification.py`, until all imports use that one.

A module of the name that the package gives its function hides the function: once it is imported, `from
flashelmo.export import verify` is the module.
"""

from flashelmo.export.verification import verify

__all__ = ["verify"]
