#!/usr/bin/env bash
# The same command on every host of a TPU pod slice, or of several slices; JAX finds the others.
#
#   TPU=my-pod ZONE=us-central1-a bash launch/tpu_pod.sh --config=configs/gpt_1b.py \
#     --config.workers=4 --workdir=/shared/runs/gpt_1b
#
# The repository is at ~/desloc_jax on every host, with requirements-tpu.txt installed; the workdir is a
# folder that all hosts see: Filestore, or a bucket with hierarchical namespace, mounted by
#   gcsfuse --implicit-dirs --rename-dir-limit=200000 BUCKET /shared
# In another bucket a folder is renamed file by file, by default not at all, and renaming a folder is
# how a checkpoint becomes complete; the start checks that it works.
# `python run.py --mode=compile --config.topology=v5e:16x16` tells beforehand whether it fits.
set -euo pipefail
: "${TPU:?name of the TPU}" "${ZONE:?its zone}"

gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd ~/desloc_jax && python run.py $(printf '%q ' "$@")"
