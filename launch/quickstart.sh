#!/usr/bin/env bash
# From a fresh clone to a first report; a second call continues where the first stopped.
#
#   bash launch/quickstart.sh [workdir]   # runs/quick unless given
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

workdir="${1:-$root/runs/quick}"
case "$workdir" in
  /* | *://*) ;;
  *) workdir="$PWD/$workdir" ;; # the study runs from the root, the caller may be elsewhere
esac

prepare_environment
cd "$root"
"$python" -m sdistill.study --config configs/signs/study.py:quick --workdir "$workdir"

say "the report is $workdir/report.html
The full study, from $root:
  .venv/bin/python -m sdistill.study --config configs/signs/study.py --workdir runs/study"
