"""Limits that a process puts on itself before a student's code runs in it.

Three layers, each of which holds where the one above it has been talked round:

- an audit hook of Python's, which says in words what was refused and for which part,
- Landlock and seccomp where the kernel has them (Linux 5.13 and newer, x86-64 and arm64): no file
  outside the allowed folders, no process, no socket, no signal to others, not even for root,
- resource limits: memory, processor time, file size.

None of them can be lifted again by the process itself. What they do not stop is described in
`minivllm.grading.runner`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import signal
import struct
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import cache_from_source
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]  # the folder minivllm/
GRADING = Path(__file__).resolve().parent

# ------------------------------------------------------------------ what may be read


@cache
def readable() -> tuple[str, ...]:
    """The folders and files that a student's code may read: Python, what is installed for it, and
    minivllm without its grader."""
    below = ("bin", "etc", "include", "lib", "lib64", "share")
    python = [os.path.join(p, name) for p in (sys.prefix, sys.base_prefix) for name in below]
    python += [os.path.join(sys.prefix, "pyvenv.cfg"), sys.executable]
    python += [*sysconfig.get_paths().values(), *_site_packages()]
    system = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/localtime"]
    system += ["/usr/local/lib", "/etc/ld.so.cache", "/etc/mime.types", "/etc/fonts"]
    system += ["/usr/share/fonts", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"]
    # Of /proc nothing about other processes: their environment may hold a CI's secrets.
    system += [f"/proc/{name}" for name in ("self", "meminfo", "cpuinfo", "stat", "filesystems")]
    system += ["/proc/sys", "/sys/devices/system", "/sys/fs/cgroup"]
    package = [str(p) for p in PACKAGE.iterdir() if p.name not in ("grading", "__pycache__")]
    package.append(str(PACKAGE / "__pycache__"))
    found = [os.path.realpath(path) for path in [*python, *system, *package]]
    secrets = [str(PACKAGE.parent / name) for name in ("solutions", "exercises", "tests")]
    return tuple(
        sorted(
            path
            for path in set(found)
            if os.path.exists(path) and path != "/" and not any(_inside(s, [path]) for s in secrets)
        )
    )


def _site_packages() -> list[str]:
    return [path for path in sys.path if path and path.rstrip("/").endswith("-packages")]


def _inside(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder + os.sep) for folder in folders)


# ------------------------------------------------------------------ the kernel's own means

_ARCH = {
    "x86_64": (
        0xC000003E,
        {
            "socket": 41, "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "kill": 62,
            "ptrace": 101, "setpgid": 109, "setsid": 112, "rt_sigqueueinfo": 129, "mknod": 133,
            "personality": 135, "pivot_root": 155, "setrlimit": 160, "chroot": 161, "mount": 165,
            "umount2": 166, "swapon": 167, "reboot": 169, "sethostname": 170, "init_module": 175,
            "tkill": 200, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94,
            "fchownat": 260, "fchmodat": 268, "settimeofday": 164, "tgkill": 234,
            "add_key": 248, "request_key": 249,
            "keyctl": 250, "unshare": 272, "rt_tgsigqueueinfo": 297, "perf_event_open": 298,
            "prlimit64": 302, "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310,
            "process_vm_writev": 311, "finit_module": 313, "memfd_create": 319, "bpf": 321,
            "execveat": 322, "userfaultfd": 323,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "mknod": 33, "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51,
            "personality": 92, "unshare": 97, "init_module": 105, "ptrace": 117, "kill": 129,
            "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55,
            "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "reboot": 142, "setpgid": 154,
            "setsid": 157, "sethostname": 161, "setrlimit": 164, "settimeofday": 170,
            "socket": 198, "add_key": 217, "request_key": 218, "keyctl": 219, "clone": 220,
            "execve": 221, "swapon": 224, "rt_tgsigqueueinfo": 240, "perf_event_open": 241,
            "prlimit64": 261, "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270,
            "process_vm_writev": 271, "finit_module": 273, "memfd_create": 279, "bpf": 280,
            "execveat": 281, "userfaultfd": 282,
        },
    ),
}  # fmt: skip
_NEW_CALLS = (424, 425, 426, 427, 434, 438, 452)  # pidfd_*, io_uring_*, fchmodat2
_CLONE3 = 435
_CLONE_THREAD = 0x00010000

_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
_LOAD, _EQUAL, _AT_LEAST, _AND_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data


def _program() -> bytes:
    """The seccomp filter: no new process, no socket, no signal to another process."""
    architecture, calls = _ARCH[platform.machine()]
    pid = os.getpid()
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _EPERM),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, 0x40000000),  # the x32 calls, other numbers for the same
        (_RETURN, 0, 0, _EPERM),
        (_EQUAL, 0, 1, _CLONE3),  # its flags cannot be seen here: the C library falls back to clone
        (_RETURN, 0, 0, _ENOSYS),
    ]
    for name, number in calls.items():
        if name == "clone":  # a thread is no process
            test = [(_LOAD, 0, 0, _ARGUMENT), (_AND_SET, 1, 0, _CLONE_THREAD)]
        elif name in ("kill", "tgkill"):  # to itself
            test = [(_LOAD, 0, 0, _ARGUMENT), (_EQUAL, 1, 0, pid)]
        elif name == "prlimit64":  # may read its limits, not set them
            test = [(_LOAD, 0, 0, _ARGUMENT + 16), (_EQUAL, 1, 0, 0)]
        else:
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
            continue
        code += [(_EQUAL, 0, len(test) + 2, number), *test]
        code += [(_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    for number in _NEW_CALLS:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *line) for line in code)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _system_call(number: int, *arguments: Any) -> int:
    return int(_libc().syscall(ctypes.c_long(number), *arguments))


def seccomp() -> bool:
    """Refuse processes, sockets and signals to others from now on, in every thread.

    Returns:
        Whether this system can.
    """
    if sys.platform != "linux" or platform.machine() not in _ARCH or sys.maxsize < 1 << 32:
        return False
    program = _program()
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    if _libc().prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        return False
    number = 317 if platform.machine() == "x86_64" else 277
    every_thread = 1
    return _system_call(number, 1, every_thread, ctypes.create_string_buffer(header, 16)) == 0


def landlock_version() -> int:
    """The version of Landlock that this kernel has; 0 if none."""
    if sys.platform != "linux":
        return 0
    return max(0, _system_call(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))


def landlock(read: Iterable[str], write: Iterable[str]) -> bool:
    """Refuse this thread, and all that it starts, every file but those below `read` and `write`.

    The names below minivllm/ may be listed, as importing does.

    Returns:
        Whether this system can.
    """
    version = landlock_version()
    if not version:
        return False
    all_rights = (1 << 13) - 1
    for since, right in ((2, 13), (3, 14)):  # refer, truncate
        all_rights |= (1 << right) if version >= since else 0
    reading = 0b1100 | 1  # read a file, list a folder, execute (load) it
    of_files = 0b111 | (1 << 14 if version >= 3 else 0)
    attributes = struct.pack("Q", all_rights)
    ruleset = _system_call(444, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    if ruleset < 0:
        return False
    try:
        rules = ((read, reading), (write, all_rights), ([str(PACKAGE)], 1 << 3))
        for paths, rights in rules:
            for path in paths:
                try:
                    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
                except OSError:
                    continue
                rule = struct.pack("=Qi", rights if os.path.isdir(path) else rights & of_files, fd)
                _system_call(445, ruleset, ctypes.c_uint32(1), rule, ctypes.c_uint32(0))
                os.close(fd)
        if _libc().prctl(38, 1, 0, 0, 0):
            return False
        return _system_call(446, ruleset, ctypes.c_uint32(0)) == 0
    finally:
        os.close(ruleset)


def limit(memory: int, seconds: float | None, file_size: int) -> None:
    """Set the resource limits of this process: bytes of address space, seconds of processor time,
    bytes of one file."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = [("AS", memory, memory), ("CORE", 0, 0), ("FSIZE", file_size, file_size)]
    if seconds is not None:  # first SIGXCPU, which says why, then SIGKILL
        limits.append(("CPU", int(seconds) + 1, int(seconds) + 3))
    for name, soft, hard in limits:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))


def die_with_parent() -> None:
    """Have this process killed when the one that started it ends (Linux)."""
    if sys.platform == "linux":
        _libc().prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def defences() -> list[str]:
    """What guards a student's process on this system, in words for the report."""
    found = ["audit hook", "resource limits"]
    if sys.platform == "linux" and platform.machine() in _ARCH:
        found.append("seccomp")
    if landlock_version():
        found.append(f"Landlock {landlock_version()}")
    return found


# ------------------------------------------------------------------ the audit hook

WORDS = {
    "socket.": "used the network",
    "subprocess.": "started a process",
    "os.system": "started a process",
    "os.exec": "started a process",
    "os.fork": "started a process",
    "os.posix_spawn": "started a process",
    "os.spawn": "started a process",
    "pty.": "started a process",
    "os.kill": "sent a signal",
    "signal.pthread_kill": "sent a signal",
    "os.remove": "changed files",
    "os.rename": "changed files",
    "os.mkdir": "changed files",
    "os.rmdir": "changed files",
    "os.link": "changed files",
    "os.symlink": "changed files",
    "os.chmod": "changed files",
    "os.chown": "changed files",
    "os.truncate": "changed files",
    "shutil.": "changed files",
}
ONLY_IN_CHILD = {
    "ctypes.": "called into C",
    "gc.get_": "searched the memory of its process",
    "os.listdir": "looked at files",
    "os.scandir": "looked at files",
    "glob.glob": "looked at files",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_AF_UNIX = 1


def _offence(event: str, args: tuple[Any, ...], words: dict[str, str]) -> str:
    """What a call is, if it is one that answers may not make; else an empty string."""
    for start, what in words.items():
        if event.startswith(start):
            if event == "socket.__new__" and args[1] == _AF_UNIX:
                return ""  # an event loop's own pipe
            target = next((a for a in args if isinstance(a, (str, bytes, list, tuple))), "")
            return f"{what} ({event}{f' {target!r:.80}' if target else ''})"
    return ""


def _opens(args: tuple[Any, ...]) -> tuple[str, bool] | None:
    """The real path and whether for writing, of an "open" event; None for a file descriptor."""
    path, mode, flags = args
    if isinstance(path, int) or path is None:
        return None
    writing = bool(isinstance(flags, int) and flags & _WRITING)
    writing = writing or (isinstance(mode, str) and any(c in mode for c in "wax+"))
    return os.path.realpath(os.fsdecode(path)), writing


def _third_party() -> str:
    """The package from outside the standard library in whose code a call is made; "" if none.

    The outermost: of numpy that pandas imports, pandas is what the student asked for.
    """
    name = ""
    frame: FrameType | None = sys._getframe(1)
    while frame:
        if f"-packages{os.sep}" in frame.f_code.co_filename:
            package = str(frame.f_globals.get("__name__", "")).split(".")[0]
            name = package if package != "minivllm" else name
        frame = frame.f_back
    return name


def lock_child(memory: int, seconds: float, refuse: Callable[[str], object]) -> None:
    """Lock the process in which code answers run; what they may not do ends it through `refuse`.

    Args:
        memory: Bytes of address space.
        seconds: Processor time.
        refuse: Tells the parent why, in words, and ends the process.
    """
    sys.dont_write_bytecode = True
    allowed = readable()
    die_with_parent()
    limit(memory, seconds, 0)
    landlock(allowed, ["/dev/null"])
    seccomp()
    for name in list(sys.modules):
        if name.startswith(("minivllm.grading", "ctypes", "_ctypes")):
            del sys.modules[name]
    words = WORDS | ONLY_IN_CHILD
    own, package = str(GRADING), str(PACKAGE)
    busy = threading.local()  # what the hook itself calls is not judged

    def stop(offence: str) -> None:
        package = _third_party()
        refuse(
            f"{package:.80} cannot be used here; the standard library and minivllm can."
            if package
            else f"Your code {offence}: an answer may only compute."
        )

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if getattr(busy, "now", False):
            return
        busy.now = True
        try:
            if event == "import":
                name = str(args[0])
                if name.startswith("minivllm.grading"):
                    refuse(f"Your code imported {name}: answers may use minivllm, not its grader.")
                if name.split(".")[0] in ("ctypes", "_ctypes"):
                    stop("imported ctypes")
                return
            if event == "open":
                opened = _opens(args)
                if opened is None or opened[0] == "/dev/null":
                    return
                path, writing = opened
                if os.path.basename(path).startswith("<"):
                    return  # the compiler looks for the line of a syntax error
                if _inside(path, [own]):  # a traceback looks for source lines: nothing to see
                    raise PermissionError(f"not for answers: {path}")
                if writing or not _inside(path, allowed):
                    stop(f"{'wrote to' if writing else 'read'} the file {path!r:.200}")
                return
            if event in ("os.listdir", "os.scandir"):  # importing lists folders too
                folder = args[0]
                if isinstance(folder, int):
                    return
                if _inside(os.path.realpath(os.fsdecode(folder or ".")), [*allowed, package]):
                    return
            offence = _offence(event, args, words)
            if offence:
                stop(offence)
        finally:
            busy.now = False

    sys.addaudithook(hook)


def _own_files() -> list[str]:
    """What a notebook may read of the grader: `check`, and the drivers, which hold no secret.

    Not the checks: modules named like an exercise, e04_the_clamp.
    """
    checks = GRADING / "exercises"
    helpers = [path for path in checks.glob("*.py") if not re.match(r"e\w\d_", path.name)]
    own = [*GRADING.glob("*.py"), *helpers, checks / "drivers"]
    return [*map(str, own), *map(cache_from_source, helpers)]


def lock_kernel_files(write: Iterable[str]) -> None:
    """Shut a notebook's kernel out of all files but Python's, minivllm's and those below `write`.

    The checks and the solutions are not among them. To be called before any thread is started:
    Landlock holds for the calling thread and what it starts.
    """
    sys.dont_write_bytecode = True
    landlock([*readable(), *_own_files()], [*write, "/dev/null"])


def lock_kernel(write: Iterable[str], report: Callable[[str], object]) -> None:
    """Refuse a notebook's kernel processes, sockets, signals and foreign files from now on.

    Args:
        write: Folders that it may write to.
        report: Told, in words, each time something is refused.
    """
    allowed = readable()
    own = _own_files()
    scratch = [os.path.realpath(path) for path in write]
    anywhere = [*scratch, "/dev/null"]
    seccomp()
    busy = threading.local()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if getattr(busy, "now", False):
            return
        busy.now = True
        try:
            if event == "open":
                opened = _opens(args)
                if opened is None:
                    return
                path, writing = opened
                mine = [*own] if _inside(path, [str(GRADING)]) else allowed
                good = _inside(path, anywhere) or (not writing and _inside(path, mine))
                if not good and not os.path.basename(path).startswith("<"):
                    if writing or os.path.exists(path):
                        report(f"{'wrote to' if writing else 'read'} the file {path!r:.200}")
                    raise PermissionError(f"not while grading: {path}")
                return
            offence = _offence(event, args, WORDS)
            if offence.startswith("changed files"):
                paths = [a for a in args if isinstance(a, (str, bytes))]
                if all(_inside(os.path.realpath(os.fsdecode(p)), anywhere) for p in paths):
                    return
            if offence:
                report(offence)
                raise PermissionError(f"not while grading: {event}")
        finally:
            busy.now = False

    sys.addaudithook(hook)
