"""Build CHOLMOD's LGPL modules alone, as a shared library that a wheel can carry.

A distribution's libcholmod contains GPL modules (Supernodal, Modify, MatrixOps), so a wheel that bundled it would be
under the GPL. This compiles Core, Check, Cholesky and Partition (LGPL), with AMD, CAMD, COLAMD, CCOLAMD (BSD) and
METIS (Apache 2.0), from unchanged sources, and checks that no symbol of the others is inside. It stays a shared
library, so that whoever has the wheel can put a library of their own in its place, as the LGPL asks.

    python packaging/cholmod.py PREFIX                                # Debian's source packages, through apt-get
    python packaging/cholmod.py PREFIX --suitesparse DIR --metis DIR  # unpacked releases: SuiteSparse 5, METIS 5.1

On macOS, where this has not been run yet, the second way is the only one. On Windows vcpkg builds the same modules
(packaging/README.md).

PREFIX gets include/, lib/ and licenses/; `CHOLMOD_INCLUDE_DIR=PREFIX/include CHOLMOD_LIBRARY_DIR=PREFIX/lib` then
builds the package against it.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MACOS = sys.platform == "darwin"
LIBRARY, LINK = ("libcholmod.3.dylib", "libcholmod.dylib") if MACOS else ("libcholmod.so.3", "libcholmod.so")
ORDERINGS = {  # folder: sources compiled for `long` indices
    "AMD": "amd_*.c",
    "CAMD": "camd_*.c",
    "COLAMD": "colamd.c",
    "CCOLAMD": "ccolamd.c",
}
MODULES = ("Core", "Check", "Cholesky", "Partition")
WITHOUT_GPL = ["-DNGPL"]
GPL_SYMBOLS = re.compile(
    r"cholmod_(l_)?(super|updown|rowadd|rowdel|drop|horzcat|norm_|scale|sdmult|ssmult|submatrix|vertcat|symmetry)"
)
# Debian's METIS has 32-bit indices; the same width gives the same orders, and so the same last digits
METIS_FLAGS = ["-DIDXTYPEWIDTH=32", "-DREALTYPEWIDTH=32", "-DLINUX", "-DNDEBUG", "-DNDEBUG2", "-D_FILE_OFFSET_BITS=64"]


def debian_sources(folder: Path) -> tuple[Path, Path]:
    """Download and unpack Debian's source packages; needs apt-get, but no change of the system's own lists."""
    listed = folder / "sources.list"
    codename = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    configured = Path("/etc/apt").rglob("*.list"), Path("/etc/apt").rglob("*.sources")
    text = "\n".join(path.read_text() for paths in configured for path in paths)
    mirror = re.search(r"(?:^deb (?:\[.*?\] )?|^URIs: )(\S+/debian)/?\s", text, re.MULTILINE)
    if codename is None or mirror is None:
        raise SystemExit("no Debian mirror is configured: name unpacked sources with --suitesparse and --metis")
    listed.write_text(f"deb-src {mirror[1]} {codename[1]} main\n")
    (folder / "lists").mkdir()
    options = ["-qq", "-o", f"Dir::Etc::sourcelist={listed}", "-o", "Dir::Etc::sourceparts=/dev/null"]
    options += ["-o", f"Dir::State::Lists={folder / 'lists'}", "-o", "APT::Sandbox::User=root"]
    subprocess.run(["apt-get", *options, "update"], check=True)
    names = ["suitesparse", "metis"]
    subprocess.run(["apt-get", *options, "source", "--download-only", *names], cwd=folder, check=True)
    for archive in folder.glob("*.orig.tar.*"):
        subprocess.run(["tar", "xf", archive.name], cwd=folder, check=True)
    return next(folder.glob("SuiteSparse-*")), next(folder.glob("metis-*"))


def units(suitesparse: Path, metis: Path) -> list[tuple[Path, list[str]]]:
    """Every source file, and the flags that it is compiled with."""
    folders = [suitesparse / name / "Include" for name in (*ORDERINGS, "CHOLMOD")]
    include = [f"-I{path}" for path in (*folders, suitesparse / "SuiteSparse_config", metis / "include")]
    out = [(suitesparse / "SuiteSparse_config" / "SuiteSparse_config.c", include)]
    for name, pattern in ORDERINGS.items():
        out += [(path, ["-DDLONG", *include]) for path in sorted((suitesparse / name / "Source").glob(pattern))]
    for module in MODULES:
        sources = sorted((suitesparse / "CHOLMOD" / module).glob("cholmod_*.c"))
        for index in ([], ["-DDLONG"]):  # cholmod.h declares both interfaces
            out += [(path, [*index, *WITHOUT_GPL, *include]) for path in sources]
    for name in ORDERINGS:  # the interface for `int` indices, for whoever else uses the library
        out += [(path, include) for path in sorted((suitesparse / name / "Source").glob(ORDERINGS[name]))]
    inside = [f"-I{metis / part}" for part in ("GKlib", "include", "libmetis")]
    kit = [path for path in sorted((metis / "GKlib").glob("*.c")) if path.name != "gkregex.c"]
    out += [(path, [*METIS_FLAGS, *inside, "-w"]) for path in (*kit, *sorted((metis / "libmetis").glob("*.c")))]
    return out


def compile_all(sources: list[tuple[Path, list[str]]], folder: Path) -> list[str]:
    """Compile into ``folder``; the object files."""
    compiler = os.environ.get("CC", "cc")

    def compile_one(numbered: tuple[int, tuple[Path, list[str]]]) -> str:
        number, (path, flags) = numbered
        made = folder / f"{number:03d}-{path.stem}.o"
        subprocess.run([compiler, "-O3", "-g0", "-fPIC", *flags, "-c", path, "-o", made], check=True)
        return str(made)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, enumerate(sources)))


def check_symbols(library: Path) -> int:
    """Refuse a library with a symbol of a GPL module; the number of CHOLMOD's symbols that were looked at."""
    listed = ["nm", "-gU"] if MACOS else ["nm", "-D", "--defined-only"]
    answer = subprocess.run([*listed, library], check=True, capture_output=True, text=True)
    symbols = [line.split()[-1] for line in answer.stdout.splitlines()]
    symbols = [name.removeprefix("_") for name in symbols] if MACOS else symbols
    found = sorted(name for name in symbols if GPL_SYMBOLS.match(name))
    if found:
        raise SystemExit(f"{library} contains {len(found)} symbols of CHOLMOD's GPL modules: {', '.join(found[:5])}")
    seen = [name for name in symbols if name.startswith("cholmod_")]
    if "cholmod_l_analyze" not in seen:
        raise SystemExit(f"{library} has no cholmod_l_analyze among its {len(seen)} CHOLMOD symbols")
    return len(seen)


def install(suitesparse: Path, metis: Path, objects: list[str], prefix: Path) -> Path:
    """Link, check and lay out headers, library and licences under ``prefix``."""
    for name in ("include", "lib", "licenses"):
        (prefix / name).mkdir(parents=True, exist_ok=True)
    library = prefix / "lib" / LIBRARY
    # a library knows the name by which it is looked for: on macOS the path from which a wheel's tool takes it
    linux = ["-shared", "-Wl,--no-undefined", f"-Wl,-soname,{LIBRARY}"]
    kind = ["-dynamiclib", "-install_name", library] if MACOS else linux
    subprocess.run([os.environ.get("CC", "cc"), *kind, "-o", library, *objects, "-lm"], check=True)
    subprocess.run(["strip", "-x" if MACOS else "--strip-unneeded", library], check=True)
    count = check_symbols(library)
    print(f"{library}: {library.stat().st_size} bytes, {count} CHOLMOD symbols, none of a GPL module")
    link = prefix / "lib" / LINK
    link.unlink(missing_ok=True)
    link.symlink_to(LIBRARY)
    headers = [suitesparse / "SuiteSparse_config" / "SuiteSparse_config.h"]
    headers += sorted((suitesparse / "CHOLMOD" / "Include").glob("cholmod*.h"))
    for header in headers:
        shutil.copy(header, prefix / "include")
    shutil.copy(suitesparse / "CHOLMOD" / "Core" / "lesser.txt", prefix / "licenses" / "CHOLMOD-LGPL-2.1.txt")
    for name in ORDERINGS:
        shutil.copy(suitesparse / name / "Doc" / "License.txt", prefix / "licenses" / f"{name}.txt")
    shutil.copy(metis / "LICENSE.txt", prefix / "licenses" / "METIS-Apache-2.0.txt")
    return library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", type=Path)
    parser.add_argument("--suitesparse", type=Path, help="unpacked SuiteSparse 5 sources")
    parser.add_argument("--metis", type=Path, help="unpacked METIS 5.1 sources, GKlib included")
    given = parser.parse_args()
    if (given.suitesparse is None) != (given.metis is None):
        parser.error("--suitesparse and --metis go together")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sources = debian_sources(folder) if given.metis is None else (given.suitesparse, given.metis)
        objects = folder / "objects"
        objects.mkdir()
        install(*sources, compile_all(units(*sources), objects), given.prefix.resolve())


if __name__ == "__main__":
    sys.exit(main())
