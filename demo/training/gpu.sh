#!/bin/sh
# Continues a training on a machine with a GPU, and copies weights (at most 12 MB a file) and curve to a folder:
#
#   sh demo/training/gpu.sh COMFYUI FOLDER PART [SECONDS [FALL [BATCH]]]
#
# PART: image, transformer or decoder. The rate falls to zero over the last FALL seconds; 0 keeps it, to continue later.
# Only time ends it, whatever has been seen.
# Of COMFYUI only the folder comfy is needed, with torch, transformers, einops, safetensors and comfy_kitchen.
set -eu
comfyui=$1 folder=$2 part=$3 seconds=${4:-500} fall=${5:-150} batch=${6:-256}
here=$(dirname "$0")
COHERENCE_TRAINING=${COHERENCE_TRAINING:-$here/.training}
export COHERENCE_TRAINING
python3 "$here/run.py" --comfyui "$comfyui" --part "$part" --seconds "$seconds" --fall "$fall" --batch "$batch" \
    --plan 1000000000 1000000001
cp "$COHERENCE_TRAINING"/world_*.safetensors "$COHERENCE_TRAINING"/world_*.json "$folder"
