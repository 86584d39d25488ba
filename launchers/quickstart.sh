#!/usr/bin/env bash
# From a bare machine to a distilled student, on two CPU ranks under ZeRO-2 (or on the GPUs there are):
#   bash launchers/quickstart.sh                  SmolLM2-135M into 10 of its 30 blocks, continual pre-training
#   bash launchers/quickstart.sh classification   MiniLM into 2 of its 6 blocks, Rotten Tomatoes
# More words are passed on as overrides of the recipe: bash launchers/quickstart.sh lm distill.max_steps=20
# Where the ranks do not divide the recipe's batches, or those given here, these are rounded up (ted_ds/verbs/quickstart.py).
# The environment's variables are explained in launchers/environment.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-lm}" in
    lm) recipe=ds_configs/recipes/smollm2_continual.yaml ;;
    classification) recipe=ds_configs/recipes/minilm_rotten_tomatoes.yaml ;;
    *) echo "quickstart.sh: '$1' is unknown; use: quickstart.sh [lm|classification] [a.b=value ...]" >&2; exit 2 ;;
esac
shift $(($# > 0 ? 1 : 0))

source launchers/environment.sh
SECONDS=0
echo "environment: $TED_DS_VENV"
make_environment demo
ranks=2
if is_cpu_machine; then use_cpu; else ranks=$(python -c 'import torch; print(torch.cuda.device_count())'); fi
echo "assets: demo_assets"
python -m ted_ds.verbs.demo_assets demo_assets
fitting=$(python -m ted_ds.verbs.quickstart "$recipe" "$ranks" "$@")
read -ra changes <<< "$fitting"
if [ ${#changes[@]} -gt 0 ]; then echo "batches that $ranks ranks can share: ${changes[*]}"; fi
echo "ready after ${SECONDS} s"
deepspeed --num_gpus "$ranks" --module ted_ds run "$recipe" "$@" "${changes[@]}"
echo "quickstart: $((SECONDS / 60)) min $((SECONDS % 60)) s in all"
