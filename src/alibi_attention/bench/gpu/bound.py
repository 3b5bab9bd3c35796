"""``python -I -S bound.py PARENT PROGRAM ...``: becomes the program, which the system kills when the parent dies.

A program of its own, which imports nothing of ours, because whoever starts it has threads, and what a child of such a
process may do between fork and exec is next to nothing. Where there is no prctl, nothing but the program is started.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            # It died before it could be heard of.
            sys.exit(1)
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
