"""Builds the compiled kernels; everything else about the package is declared in pyproject.toml.

Every `src/fastlmm_core/_native/<room>/<name>.pyx` becomes the extension `fastlmm_core._native.<room>.<name>`.
Environment variables read here:

FASTLMM_DEBUG=1          bounds and initialisation checks on, -O1 -g, in a build folder of its own
FASTLMM_SANITIZE=1       gcc's checks of addresses and of undefined behaviour, in a build folder of its own
CHOLMOD_INCLUDE_DIR      folder that holds cholmod.h
CHOLMOD_LIBRARY_DIR      folder that holds the CHOLMOD library
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("src/fastlmm_core")
DEBUG = os.environ.get("FASTLMM_DEBUG", "0") not in ("", "0")
SANITIZE = os.environ.get("FASTLMM_SANITIZE", "0") not in ("", "0")
BUILD = Path("build/sanitize" if SANITIZE else "build/debug" if DEBUG else "build")
GENERATED = Path("build/debug" if DEBUG else "build") / "cython"  # the sanitizers look at the same C as is shipped
# checks of each dereference for null, alignment and size take half of the compile: the first and the last end in the
# address sanitizer too
SANITIZERS = [
    "-fsanitize=address,undefined",
    "-fno-sanitize=null,alignment,object-size",
    "-fno-sanitize-recover=undefined",
]
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "initializedcheck": DEBUG,
    "wraparound": False,
    "cdivision": True,
    "show_performance_hints": not DEBUG,  # they would only ask for the checks to be turned off
}
NO_CHOLMOD = (
    "fastlmm_core needs SuiteSparse's CHOLMOD, but cholmod.h was not found: install it "
    "(`apt-get install libsuitesparse-dev`, `brew install suite-sparse` or `conda install -c conda-forge suitesparse`) "
    "or name its folder in the environment variable CHOLMOD_INCLUDE_DIR."
)


def module_name(path: Path) -> str:
    """Dotted name of the module that a source file defines."""
    return ".".join(path.relative_to(SOURCES.parent).with_suffix("").parts)


def cholmod_users() -> set[str]:
    """Modules whose C code includes cholmod.h, directly or through what they cimport."""
    text: dict[str, str] = {}
    for path in SOURCES.rglob("*.p[yx][xd]"):
        text[module_name(path)] = text.get(module_name(path), "") + path.read_text(encoding="utf-8")
    cimported = {
        name: set(re.findall(r"^\s*from\s+([\w.]+)\s+cimport\b", body, re.MULTILINE)) for name, body in text.items()
    }
    users = {name for name, body in text.items() if "cholmod.h" in body}
    while True:
        more = {name for name, modules in cimported.items() if modules & users} - users
        if not more:
            return users
        users |= more


def pkg_config(option: str) -> list[str]:
    """What pkg-config says about CHOLMOD; nothing where it, or its entry, is missing."""
    if shutil.which("pkg-config") is None:
        return []
    for name in ("CHOLMOD", "cholmod"):
        answer = subprocess.run(["pkg-config", option, name], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return [word[2:] for word in shlex.split(answer.stdout)]
    return []


def find_cholmod() -> tuple[list[str], list[str]]:
    """Folders for cholmod.h and for the library: environment, then pkg-config, then the usual places.

    Raises
    ------
    SystemExit
        With one sentence that names the package to install.
    """
    prefixes = [Path(p) for p in (os.environ.get("CONDA_PREFIX"), sys.prefix) if p]
    prefixes += [Path(p) for p in ("/usr", "/usr/local", "/opt/homebrew", "/opt/local")]
    named = os.environ.get("CHOLMOD_INCLUDE_DIR")
    usual = [prefix / "include" / sub for prefix in prefixes for sub in ("suitesparse", "")]
    candidates = [Path(named)] if named else [*map(Path, pkg_config("--cflags-only-I")), *usual]
    include = next((folder for folder in candidates if (folder / "cholmod.h").is_file()), None)
    if include is None:
        raise SystemExit(NO_CHOLMOD)
    library = os.environ.get("CHOLMOD_LIBRARY_DIR")
    if library:
        return [str(include)], [library]
    # the compiler's own search path covers /usr; elsewhere the library lies beside the header
    beside = [prefix / "lib" for prefix in prefixes if include.is_relative_to(prefix) and prefix != Path("/usr")]
    return [str(include)], pkg_config("--libs-only-L") or [str(folder) for folder in beside if folder.is_dir()]


def openmp_flags() -> tuple[list[str], list[str]]:
    """Compile and link flags for OpenMP."""
    if sys.platform == "win32":
        return ["/openmp"], []
    if sys.platform != "darwin":
        return ["-fopenmp"], ["-fopenmp"]
    # Apple's clang has the pragmas but not the runtime, which Homebrew keeps outside the search path
    prefix = Path("/opt/homebrew/opt/libomp" if Path("/opt/homebrew").is_dir() else "/usr/local/opt/libomp")
    return ["-Xpreprocessor", "-fopenmp", f"-I{prefix}/include"], [f"-L{prefix}/lib", "-lomp"]


class BuildKernels(build_ext):
    """Cythonises and looks for headers only when something is compiled, so that an sdist needs neither."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.parallel is None:
            self.parallel = os.cpu_count()

    def build_extensions(self) -> None:
        import numpy as np
        from Cython.Build import cythonize
        from Cython.Compiler.Errors import CompileError

        compile_args, link_args = openmp_flags()
        if sys.platform != "win32":
            # the checks inside parallel loops leave generated variables that gcc cannot see are set
            careful = ["-O1", "-g1" if SANITIZE else "-g", "-Wno-maybe-uninitialized"]
            compile_args += careful if DEBUG or SANITIZE else ["-O3"]
            # symbols for a debugger are three quarters of the size; whoever profiles asks for them
            symbols = DEBUG or SANITIZE or "-g" in shlex.split(os.environ.get("CFLAGS", ""))
            compile_args += [] if symbols else ["-g0"]
        if SANITIZE:
            compile_args += [*SANITIZERS, "-fno-omit-frame-pointer"]
            link_args += SANITIZERS
        users = cholmod_users()
        for ext in self.extensions:
            ext.extra_compile_args += compile_args
            ext.extra_link_args += link_args
            ext.include_dirs.append(np.get_include())
            ext.define_macros.append(("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"))
            if ext.name in users:
                include, library = find_cholmod()
                ext.include_dirs += include
                ext.library_dirs += library
                ext.runtime_library_dirs += library if sys.platform != "win32" else []
                ext.libraries.append("cholmod")
        try:
            made = cythonize(
                self.extensions,
                build_dir=str(GENERATED),
                include_path=[str(SOURCES.parent)],
                compiler_directives=DIRECTIVES,
                nthreads=self.parallel if len(self.extensions) > 1 else 0,
                force=self.force,
            )
        except CompileError as error:  # Cython has printed the place and the reason
            raise SystemExit(f"Cython could not compile {error}") from None
        generated = {ext.name: vars(ext) for ext in made}
        for ext in self.extensions:  # in place: setuptools has noted things on these objects
            vars(ext).update(generated[ext.name])
        super().build_extensions()


def extensions() -> list[Extension]:
    return [
        Extension(module_name(path), [path.as_posix()], depends=["setup.py"]) for path in sorted(SOURCES.rglob("*.pyx"))
    ]


if __name__ == "__main__":
    setup(
        ext_modules=extensions(),
        cmdclass={"build_ext": BuildKernels},
        options={"build": {"build_base": str(BUILD)}},
    )
