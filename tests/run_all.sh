#!/usr/bin/env bash
# All checks: library in step, notebooks clean, notebooks run, pytest. The runner's own closing line comes last.
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=.venv/bin
export TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MPLBACKEND=agg
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"      # as in `make demo`
$BIN/python tests/check_step.py
OMP_NUM_THREADS=2 $BIN/python -c "from derta_kit.demo import demo_adapters; print(demo_adapters())"        # fetched and trained once, before tests run side by side
$BIN/nbdev_test --n_workers 2 --flags slow --do_print --timing
# By file: what a file's tests share is made once. (--dist loadgroup does not group with pytest 9.2.)
DERTA_TEST_THREADS=1 $BIN/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=40 tests
