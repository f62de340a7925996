"""What a process does beyond one folder, as Python's audit hook and Linux's inotify see it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
import sysconfig
from pathlib import Path
from types import FrameType
from typing import Any

import flashelmo

IN_ALL, IN_NAMES = 0xFFF, 0x3C0  # of inotify: all events; names that come and go
PROGRAM = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), "/proc", "/sys", "/dev/null", "/dev/urandom"]
PROGRAM += ["/etc/localtime", "/usr/share/zoneinfo", str(Path(flashelmo.__file__).resolve().parent)]
PROGRAM += [str(Path(__file__).resolve().parent.parent)]
STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.", "pty.", "socket.", "urllib.")
CODE = ("pickle.find_class", "ctypes.dlopen", "webbrowser.", "os.putenv", "sys.addaudithook", "code.")
PATHS = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.chmod",
    "os.truncate",
    "os.utime",
)


class Watch:
    """What is done beyond the case's folder, as Python's audit hook and the system's inotify see it."""

    def __init__(self, root: Path) -> None:
        self.folder = os.path.realpath(root / "case")
        self.seen: list[str] = []
        self.active = False
        self._program = [os.path.realpath(path) for path in PROGRAM]
        libc = ctypes.CDLL(None, use_errno=True)
        self.trim = lambda: libc.malloc_trim(0)
        self._inotify = libc.inotify_init1(os.O_NONBLOCK)
        for path, mask in ((root / "outside", IN_ALL), (root, IN_NAMES)):
            libc.inotify_add_watch(self._inotify, os.fsencode(path), mask)
        sys.addaudithook(self._hook)

    def _hook(self, event: str, values: tuple[Any, ...]) -> None:
        if not self.active:
            return
        self.active = False  # what it does itself is no event
        try:
            if event == "open" and not isinstance(values[0], int):
                self._opened(*values)
            elif event in PATHS and not all(self._is_inside(path) for path in values if isinstance(path, str | bytes)):
                self.seen.append(f"{event} {values[:2]}")
            elif event.startswith(STARTS) or (self._is_code(event, values) and _reads_files()):
                self.seen.append(f"{event} {values!r:.200}")
        finally:
            self.active = True
        if event.startswith(STARTS):
            raise PermissionError(event)

    def _is_code(self, event: str, values: tuple[Any, ...]) -> bool:
        return event.startswith(CODE) or (event == "exec" and not self._is_program(values[0].co_filename))

    def _opened(self, path: str | bytes, mode: str | None, flags: int) -> None:
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if not self._is_inside(path) and (writes or not self._is_program(os.fsdecode(path))):
            self.seen.append(f"open {path!r} {mode} {flags:#x}")

    def _is_inside(self, path: str | bytes) -> bool:
        real = os.path.realpath(os.fsdecode(path))
        return real == self.folder or real.startswith(self.folder + "/")

    def _is_program(self, path: str) -> bool:
        real = os.path.realpath(path)
        return path.startswith("<frozen") or any(real == p or real.startswith(p + "/") for p in self._program)

    def events(self) -> list[str]:
        """Since the last call."""
        seen, self.seen = list(dict.fromkeys(self.seen)), []
        names = []
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._inotify, 1 << 20)
            while data:  # struct inotify_event: watch, mask, cookie, length of the name
                length = struct.unpack("iIII", data[:16])[3]
                names.append(data[16 : 16 + length].rstrip(bytes(1)).decode())
                data = data[16 + length :]
        seen += [f"beside the case's folder: {name!r}" for name in dict.fromkeys(names)]
        return seen


def _reads_files() -> bool:
    """Whether it is done where files are read, not where a module is imported or typer makes commands."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if "importlib" in name:
            return False
        if "flashelmo/engine/" in name or "flashelmo/export/" in name:
            return True
        frame = frame.f_back
    return False
