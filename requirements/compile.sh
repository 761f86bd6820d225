#!/usr/bin/env bash
# Pins every requirement with hashes, for Python 3.11 to 3.13 on Linux and macOS. Run it with `make lock`.
#
#   base.txt    what lmtower itself needs
#   demo.txt    base + the embedded engine and its model: what `make up` installs
#   test.txt    all extras + tests + linters: what `make test` and `make check` install
#   build.txt   what installs this folder as a package without reaching for anything unpinned
#
# All four agree, because test.txt (the largest) constrains the others. Arguments go to uv (`--upgrade`).
set -euo pipefail
cd "$(dirname "$0")/.."

uv=$(command -v uv || echo .venv/bin/uv)
common=(--quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
        --no-emit-index-url --no-emit-find-links --override requirements/overrides.in "$@")

compile() { "$uv" pip compile "${common[@]}" "${@:2}" --output-file "requirements/$1.txt"; }

compile test pyproject.toml --all-extras --group dev --group test
compile demo pyproject.toml --extra demo --constraint requirements/test.txt
compile base pyproject.toml --constraint requirements/test.txt
compile build requirements/build.in

if grep -nE '^--|://|file:|^/' requirements/{base,demo,test,build}.txt; then
    echo "requirements must not name an index, a host or a path (see above)" >&2
    exit 1
fi
