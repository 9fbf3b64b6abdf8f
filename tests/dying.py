"""A part of a table at whose reading one process dies, once."""

import os
import signal


def part_of(part, flag):
    """The part; the first process to come here with rows kills itself and leaves the file ``flag``."""
    if len(part) and not os.path.exists(flag):
        try:
            os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return part
        os.kill(os.getpid(), signal.SIGKILL)
    return part
