"""What a child process of a room gives up before it sees foreign bytes: memory, files, network, other processes.

On Linux a seccomp filter leaves only system calls that compute: no file can be opened, no socket made, no program
started. Needs no privileges. Other systems have the limits of setrlimit alone; `docs/guides/security.md` has the table.
"""

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Iterable

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_NO_NEW_PRIVS = 1, 15, 38
OPEN_FILES = 64
SYSCALLS = {
    # name: (x86_64, aarch64); None where the architecture lacks it
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "futex": (202, 98),
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "close": (3, 57), "lseek": (8, 62), "fstat": (5, 80),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "sched_yield": (24, 124), "restart_syscall": (219, 128),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getrusage": (98, 165), "times": (100, 153), "sysinfo": (99, 179),
    "uname": (63, 160), "getcpu": (309, 168), "sched_getaffinity": (204, 123), "membarrier": (324, 283),
    "set_robust_list": (273, 99), "rseq": (334, 293), "set_tid_address": (218, 96), "getrandom": (318, 278),
    "exit": (60, 93), "exit_group": (231, 94),
    # allowed with certain arguments only, see `program`
    "clone": (56, 220), "tgkill": (234, 131), "prctl": (157, 167), "prlimit64": (302, 261),
}  # fmt: skip
CONDITIONAL = ("clone", "tgkill", "prctl", "prlimit64")
MACHINES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}
"""Machine -> (column of SYSCALLS, its number in the kernel's audit header, number of the call seccomp)."""
CLONE_THREAD, CLONE3 = 0x10000, 435
LOAD, EQUAL, BITS, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: load a word, jump if equal, jump if a bit is set, return
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000


def first_limits(memory: int) -> None:
    """Limits from the first line on, before anything is imported. `memory`: bytes of address space."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    except (OSError, ValueError):  # macOS refuses it, and would not heed it
        if sys.platform == "linux":
            raise


def die_with(parent: int) -> None:
    """Asks the kernel to kill this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def limit_cpu(seconds: float) -> None:
    """Ends this process once it has used `seconds` of CPU time from now on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def seal() -> bool:
    """Leaves this process only the calls in SYSCALLS; every other one fails with EPERM. False where that is not
    possible: other systems, other processors, kernels without seccomp."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return False
    column, audit, number = MACHINES[platform.machine()]
    code = b"".join(program(column, audit, os.getpid()))
    instructions = ctypes.create_string_buffer(code, len(code))
    program_head = struct.pack("HP", len(code) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    set_filter, all_threads = 1, 1
    return libc.syscall(number, set_filter, all_threads, program_head) == 0


def program(column: int, audit: int, pid: int) -> Iterable[bytes]:
    """The instructions of the filter. Offsets of struct seccomp_data: number 0, architecture 4, arguments from 16."""

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    def argument(index: int, high: bool = False) -> bytes:
        return step(LOAD, 16 + 8 * index + 4 * high)

    allow, refuse = step(RETURN, ALLOW), step(RETURN, REFUSE | errno.EPERM)
    yield from (step(LOAD, 4), step(EQUAL, audit, yes=1), step(RETURN, KILL), step(LOAD, 0))
    for name, numbers in SYSCALLS.items():
        if name not in CONDITIONAL and numbers[column] is not None:
            yield from (step(EQUAL, numbers[column], no=1), allow)
    bodies = {
        "clone": [argument(0), step(BITS, CLONE_THREAD, no=1), allow, refuse],
        "tgkill": [argument(0), step(EQUAL, pid, no=1), allow, refuse],
        "prctl": [argument(0), step(EQUAL, PR_SET_NAME, no=1), allow, refuse],
        # sets its own limit of CPU time, or only reads a limit (no new value)
        "prlimit64": [argument(0), step(EQUAL, 0, yes=1), refuse, argument(1), step(EQUAL, resource.RLIMIT_CPU, no=1),
                      allow, argument(2), step(EQUAL, 0, yes=1), refuse, argument(2, high=True),
                      step(EQUAL, 0, no=1), allow, refuse],
    }  # fmt: skip
    for name, body in bodies.items():
        yield step(EQUAL, SYSCALLS[name][column], no=len(body))
        yield from body
    # the C library then takes clone, whose flags are no pointer and can be looked at
    yield from (step(EQUAL, CLONE3, no=1), step(RETURN, REFUSE | errno.ENOSYS), refuse)
