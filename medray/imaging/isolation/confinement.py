"""What a process that decodes foreign bytes gives up: files, programs, the network, memory and CPU time without end.

Sources: landlock(7) and landlock_create_ruleset(2), whose system calls have these numbers on every architecture
of Linux but Alpha; setrlimit(2).
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import struct
from pathlib import Path

CREATE_RULESET, RESTRICT_SELF = 444, 446
ASK_VERSION = 1
NO_NEW_PRIVILEGES = 38
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""Rights on files that each version of Landlock knows: so many of the lowest bits."""
READING = 0b1100
"""The bits of reading a file and a folder: all other rights are execution and writing in some form."""
TCP, SIGNALS_AND_SOCKETS = 0b11, 0b11


def give_up_rights() -> bool:
    """From now on no file is written, made, removed or run, no TCP connected or bound, no other process signalled.

    What is open already stays usable. False where the kernel cannot promise it (before Linux 5.13, or Landlock
    is off): the process is then limited by `allow` alone.
    """
    kernel = ctypes.CDLL(None)
    version = kernel.syscall(CREATE_RULESET, None, 0, ASK_VERSION)
    if version < 1:
        return False
    known = max(count for since, count in FILE_RIGHTS.items() if since <= version)
    rights = [(1 << known) - 1 & ~READING, TCP if version >= 4 else 0, SIGNALS_AND_SOCKETS if version >= 6 else 0]
    # An older kernel takes a longer structure as long as what it does not know is 0. There are no rules: no exceptions.
    ruleset = kernel.syscall(CREATE_RULESET, struct.pack("=3Q", *rights), 24, 0)
    if ruleset < 0:
        return False
    refused = kernel.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or kernel.syscall(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return not refused


def allow(memory_bytes: int, cpu_s: float) -> None:
    """Let this process take so much address space and CPU time more than it has taken until now.

    Beyond the memory an allocation fails; beyond the time SIGXCPU ends the process (to the next whole second).
    The limits are soft, so that they can be renewed for the next file. No core is dumped: it would hold an image.
    """
    mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = {
        resource.RLIMIT_AS: mapped + memory_bytes,
        resource.RLIMIT_CPU: math.ceil(used.ru_utime + used.ru_stime + cpu_s),
        # What is shared with the parent lies in a file in memory, so it needs a limit of its own.
        resource.RLIMIT_FSIZE: memory_bytes,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in soft.items():
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
