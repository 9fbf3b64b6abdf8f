#!/usr/bin/env bash
# Makes a release from a clean checkout of main: everything that CI checks, the sdist and the wheel, and a tag. It uploads
# nothing: the files are in dist/ afterwards.
#
#     packaging/release.sh 0.1.0
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=${1:?usage: packaging/release.sh VERSION}
[ -z "$(git status --porcelain)" ] || { echo "the checkout has uncommitted changes" >&2; exit 1; }
grep -q "^__version__ = \"$version\"$" python/fastlmm_core/__init__.py || { echo "__version__ in python/fastlmm_core/__init__.py is not $version" >&2; exit 1; }
grep -q "^version: $version$" CITATION.cff || { echo "CITATION.cff has another version" >&2; exit 1; }
grep -q "^## \[$version\]" CHANGELOG.md || { echo "CHANGELOG.md has no section '## $version'" >&2; exit 1; }
bash .ci/run
make docs
rm -rf dist
.venv/bin/python setup.py -q sdist --dist-dir dist
make wheel
git tag -a "v$version" -m "fastlmm_core $version"
ls -l dist
