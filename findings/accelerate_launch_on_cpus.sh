#!/usr/bin/env bash
# On a machine without a GPU `accelerate launch --num_processes 2` starts one process, with --cpu and without it, and
# says nothing of it: neither WORLD_SIZE nor RANK is set, and a program that was to share its work does all of it alone.
# Whatever is no GPU, TPU or SageMaker goes to accelerate's simple launcher, which runs the command once (with mpirun
# only where --mpirun_hostfile is given). torchrun starts two processes of the same program.
# Seen with accelerate 1.15.0, torch 2.13.0 (CPU):
#   accelerate launch --cpu --num_processes 2   1 process, WORLD_SIZE unset
#   accelerate launch --num_processes 2         1 process, WORLD_SIZE unset
#   torchrun --nproc-per-node 2                 2 processes, WORLD_SIZE 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 accelerate==1.15.0
cat >told.py <<'PY'
import os

print("process", os.environ.get("RANK", "-"), "of", os.environ.get("WORLD_SIZE", "unset"), flush=True)
PY
export CUDA_VISIBLE_DEVICES="" HF_HOME="$folder" OMP_NUM_THREADS=1
plain=(--num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0)
env/bin/accelerate launch --cpu "${plain[@]}" told.py 2>/dev/null | sort >cpu.txt
env/bin/accelerate launch "${plain[@]}" told.py 2>/dev/null | sort >none.txt
env/bin/torchrun --standalone --nproc-per-node 2 told.py 2>/dev/null | sort >torchrun.txt
head cpu.txt none.txt torchrun.txt
[ "$(cat cpu.txt)" = "process - of unset" ]
[ "$(cat none.txt)" = "process - of unset" ]
[ "$(cat torchrun.txt)" = "process 0 of 2
process 1 of 2" ]
echo "as described"
