#!/usr/bin/env bash
# The environment of every run, in one place: sourced by launch.sh and by the SLURM files. Change it here.
# shellcheck disable=SC2034

# Where the kit and its Python are.
KIT="${DERTA_KIT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}"
if [ -d "$KIT/.venv/bin" ]; then export PATH="$KIT/.venv/bin:$PATH"; fi
# module load cuda        # what your cluster needs before Python, goes here

# Weights and data: a disk that all nodes see. On nodes without a way out, download first and set HF_HUB_OFFLINE=1.
export HF_HOME="${HF_HOME:-$HOME/.cache/huggingface}"
export DERTA_CACHE="${DERTA_CACHE:-$HOME/.cache/derta_kit}"

# Threads a process, memory that does not fall to pieces, and errors that say which process they are of.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
export TORCH_NCCL_ASYNC_ERROR_HANDLING="${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}"
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
# export NCCL_SOCKET_IFNAME=ib0

# How long a run that was told to leave may take to save, in seconds; SLURM's --signal must come earlier than that before the end.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-280}"
# Exit code of a run that was told to leave and has saved (derta_kit.reliable.REQUEUE).
REQUEUE=85
