"""One fresh process that measures one task of one adapter on one problem: `python -m benchmarks.worker ...`.

Protocol, a line of JSON each way (adapters that are not Python speak it too, see `adapters/worker.R`):

    out  {"ready": true, "versions": {...}}  or  {"absent": why}  or  {"unfit": why}
    in   a number: seconds for which to repeat the call, once at least
    out  {"seconds": [...], "peak_mb": ..., "criterion": ..., "evaluations": ..., "per": ..., "note": ...}
         or {"failed": why}
    in   end of file: leave
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any, TextIO

from benchmarks.adapters import adapter
from benchmarks.memory import peak_megabytes, reset_peak
from benchmarks.problems import problem
from benchmarks.tables import read_table

__all__ = ["main"]


def private_stdout() -> TextIO:
    """Standard output for the protocol alone: whatever the peers print goes to standard error from here on."""
    ours = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return ours


def main(arguments: list[str]) -> None:
    """Serve until standard input ends. Arguments: problem, criterion ("reml" or "ml"), adapter, task, table folder."""
    out = private_stdout()

    def say(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    name, criterion, peer, task, folder = arguments
    warnings.simplefilter("ignore")  # convergence is judged by the criterion reached
    model, module = problem(name).but(reml=criterion == "reml"), adapter(peer)
    try:
        versions = module.versions()
        if why := module.unfit(model, task):
            return say(unfit=why)
    except ImportError as error:
        return say(absent=str(error))
    try:
        call = module.prepare(model, read_table(Path(folder)), task)
    except Exception as error:  # a peer may refuse in any way it likes
        return say(failed=f"{type(error).__name__}: {error}")
    gc.collect()
    reset_peak()
    say(ready=True, versions=versions)
    for line in sys.stdin:
        enough = float(line)
        seconds: list[float] = []
        gc.collect()  # once a turn: before every call it would empty the caches that short calls live in
        try:
            while not seconds or sum(seconds) < enough:
                result = None
                start = time.perf_counter()
                result = call.run()
                seconds.append(time.perf_counter() - start)
            peak = peak_megabytes()
            say(seconds=seconds, peak_mb=peak, **call.outcome(result).as_dict())
        except Exception as error:
            say(failed=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
