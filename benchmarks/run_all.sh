#!/bin/sh
# Every speed benchmark, then the page that shows them; make bench runs it on an idle machine. What fails is named at the
# end, and keeps its older results: the others are not lost.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
export OMP_NUM_THREADS=1
failed=
run() {
    echo "== $*"
    "$PYTHON" "$@" || failed="$failed $1"
}
for name in startup memory; do run "benchmarks/$name.py"; done
for name in overhead reference throughput scaling means savers; do run "benchmarks/$name.py" --threads 1 --repeats 3; done
run benchmarks/solvers.py --threads 1
run benchmarks/page.py
if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
