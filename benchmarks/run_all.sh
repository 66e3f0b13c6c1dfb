#!/bin/sh
# Every speed benchmark, then the page that shows them; about 10 minutes on an idle machine. make bench runs it.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
export OMP_NUM_THREADS=1
for name in startup memory; do "$PYTHON" "benchmarks/$name.py"; done
for name in overhead reference throughput scaling means; do "$PYTHON" "benchmarks/$name.py" --threads 1 --repeats 3; done
"$PYTHON" benchmarks/page.py
