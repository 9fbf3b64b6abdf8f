"""Install a wheel where there is neither a compiler nor SuiteSparse nor OpenMP, and run the tests there.

    python packaging/check_wheel.py dist/fastlmm_core-*.whl [--root FOLDER] [-- PYTEST ARGUMENTS]

As root on Debian, with debootstrap, the place is a bare Debian of its own (--root, kept for the next time); elsewhere
it is a fresh virtual environment, and the report says that the system's libraries were in reach. Either way every
library that the installed kernels load has to lie inside the wheel or be the C library's, and a fit has to have the
bits of the source build in this environment.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from cholmod import check_symbols  # noqa: E402

SYSTEM = re.compile(r"linux-vdso|ld-linux|libc\.so|libm\.so|libpthread\.so|libdl\.so|librt\.so|libgcc_s\.so|/\.?lib")
FIT = """
import fastlmm_core as f
crossed = "diameter ~ 1 + (1 | plate) + (1 | sample)"
for formula, name in (("Reaction ~ Days + (Days | Subject)", "sleepstudy"), (crossed, "Penicillin")):
    m = f.lmer(formula, f.load_dataset(name))
    print(m.core.theta.tobytes().hex(), m.core.beta.tobytes().hex(), m.criterion.hex())
"""
LIBRARIES = """
import pathlib, fastlmm_core
print(*pathlib.Path(fastlmm_core.__file__).parent.rglob("*.so"), sep="\\n")
"""


def run(*command: object, **options: object) -> str:
    """Run a command; its output."""
    return subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def look_inside(wheel: Path, scratch: Path) -> None:
    """Check the bundled libraries and licences."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        bundled = [name for name in names if ".libs/" in name and ".so" in name]
        archive.extractall(scratch / "inside", bundled)
    libraries = [scratch / "inside" / name for name in bundled]
    cholmod = [path for path in libraries if path.name.startswith("libcholmod")]
    if len(cholmod) != 1:
        raise SystemExit(f"{wheel.name} bundles {len(cholmod)} libraries named libcholmod, not one: {bundled}")
    count = check_symbols(cholmod[0])
    if not any(name.endswith("licenses/NOTICE") for name in names):
        raise SystemExit(f"{wheel.name} has no NOTICE of the licences of what it bundles")
    size = wheel.stat().st_size / 2**20
    print(f"{wheel.name}: {size:.1f} MB; bundles {', '.join(p.name for p in libraries)}")
    print(f"{count} CHOLMOD symbols checked: none of a GPL module")


def bare_debian(root: Path) -> list[str]:
    """A Debian with Python and nothing else; the command that runs inside it."""
    if not (root / "usr/bin/python3").exists():
        run("debootstrap", "--variant=minbase", "--include=python3-venv", "bookworm", root)
    for tool in ("cc", "gcc"):
        assert not (root / "usr/bin" / tool).exists(), tool
    assert not list(root.glob("usr/lib/*/libgomp*")), "the bare system has OpenMP"
    assert not list(root.glob("usr/lib/*/libcholmod*")), "the bare system has CHOLMOD"
    if not (root / "proc/self").exists():  # tests read the peak of their memory there; a mount goes with the namespace
        return ["unshare", "--mount", "sh", "-c", f'mount -t proc proc {root}/proc && exec chroot {root} "$@"', "sh"]
    return ["chroot", str(root)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--root", type=Path, default=Path("build/bare"))
    parser.add_argument("pytest", nargs="*", default=[])
    given = parser.parse_args()
    root = given.root.resolve()
    scratch = root / "opt/check"
    bare = os.geteuid() == 0 and shutil.which("debootstrap") is not None
    inside = bare_debian(root) if bare else []
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    look_inside(given.wheel, scratch)
    place = Path("/opt/check") if bare else scratch
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    house = scratch / "wheelhouse"
    tools = [need for extra in ("test", "adapters") for need in project["optional-dependencies"][extra]]
    needs = [*project["dependencies"], *tools]
    run(sys.executable, "-m", "pip", "-q", "download", "--only-binary=:all:", "-d", house, *needs)
    shutil.copy(given.wheel, house)
    for folder in ("tests", "benchmarks", "docs"):
        shutil.copytree(HERE.parent / folder, scratch / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile", "setup.py"):
        shutil.copy(HERE.parent / file, scratch)
    python = place / "venv/bin/python"
    run(*inside, "python3" if bare else sys.executable, "-m", "venv", place / "venv")
    names = [re.split(r"[<>=!\\[ ]", need)[0] for need in tools]
    offline = ["--no-index", "--find-links", place / "wheelhouse"]
    run(*inside, python, "-m", "pip", "-q", "install", *offline, "fastlmm-core", *names)
    for kernel in run(*inside, python, "-c", LIBRARIES).split():
        for line in run(*inside, "ldd", kernel).splitlines():
            if "fastlmm_core.libs" not in line and not SYSTEM.search(line):
                raise SystemExit(f"{kernel} loads a library that the wheel does not carry: {line.strip()}")
    here = run(sys.executable, "-c", FIT)
    there = run(*inside, python, "-c", FIT)
    if here != there:
        raise SystemExit(f"the wheel's fits differ from this environment's:\n{there}{here}")
    where = "in a bare Debian" if bare else "(not in a bare system: the system's libraries were in reach)"
    print("the wheel's fits have the bits of this environment's", where)
    command = [*inside, "env", "-C", str(place), str(python), "-m", "pytest", "-q", "tests", *given.pytest]
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
