"""What a plan predicts is what a fit takes, within a fifth: measured as the peak of a process of its own."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import numpy as np
from pathlib import Path
from fastlmm_core.core import Control, Objective, Term, cross_products

def status(key):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(key))
    return int(line.split()[1]) * 1024

rng = np.random.default_rng(1)
kind = sys.argv[1]
if kind == "crossed":
    a, b = rng.integers(0, 9000, 600_000), rng.integers(0, 4000, 600_000)
    terms = [Term(a, n_levels=9000), Term(b, n_levels=4000)]
elif kind == "thin":
    a, b = rng.integers(0, 20_000, 60_000), rng.integers(0, 8000, 60_000)
    b = np.where(rng.uniform(size=60_000) < 0.4, b, rng.integers(0, 1000, 60_000))
    terms = [Term(a, n_levels=20_000), Term(b, n_levels=8000)]
elif kind == "slopes":
    a, x = rng.integers(0, 200_000, 600_000), rng.normal(size=600_000)
    terms = [Term(a, z=np.column_stack([np.ones(600_000), x]), n_levels=200_000)]
else:
    a = rng.integers(0, 300_000, 900_000)
    terms = [Term(a, n_levels=300_000), Term(a // 6, n_levels=50_000), Term(a // 300, n_levels=1_000)]
n = len(terms[0].codes)
X = np.column_stack([np.ones(n), rng.normal(size=(n, 2))])
cross = cross_products(rng.normal(size=n), X, terms)
small = cross_products(np.arange(8.0) ** 2, None, [Term([0, 0, 1, 1, 2, 2, 3, 3])])
Objective(small).derivatives([1.0])  # BLAS, OpenMP and the allocator are awake
Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
before = status("VmRSS")
model = Objective(cross, True, Control(threads=1))
model.derivatives(np.ones(model.n_theta))
measured = status("VmHWM") - before
print(json.dumps({"predicted": model.plan.total_bytes, "measured": measured, "engine": model.plan.engine}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("kind", "engine"), [("crossed", "dense"), ("slopes", "none"), ("nested", "sparse"), ("thin", "sparse")]
)
def test_peak_is_predicted(kind, engine):
    # arrays of their own pages: otherwise what an earlier step freed is used again, and not counted
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind], capture_output=True, text=True, check=True, env=environment
    )
    figures = json.loads(done.stdout)
    assert figures["engine"] == engine
    assert figures["measured"] == pytest.approx(figures["predicted"], rel=0.2)
