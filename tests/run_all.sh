#!/usr/bin/env bash
# All checks: library in step, notebooks clean, notebooks run, pytest. The runner's own closing line comes last.
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=.venv/bin
export TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MPLBACKEND=agg
$BIN/python tests/check_step.py
$BIN/python -c "from derta_kit.models import demo_path; demo_path()"        # fetched once, before tests run side by side
$BIN/nbdev_test --n_workers 2 --flags slow --do_print
DERTA_TEST_THREADS=1 $BIN/python -m pytest -q -n 2 --dist loadgroup --durations=15 tests
