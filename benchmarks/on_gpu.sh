#!/usr/bin/env bash
# All that is measured on a GPU, in the order of what matters, into one folder:
#
#     benchmarks/on_gpu.sh DATA [OUT] [STEP ...]     # DATA: folder of amazon-beauty, -sports-outdoors, yelp; OUT: results/cuda
#
# A step that fails is told and the next begins. STEPs (all of them if none is named): env tests ratio race profile
# sanitizer length beauty others sweep. Given again it measures again, but for runs, which go on where they were.
# PYTHON names the Python to use; DEVICE=cpu tries what can be tried without a GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
data=${1:?the folder of the data sets}
out=${2:-results/cuda}
shift $(($# < 2 ? $# : 2))
steps=${*:-env tests ratio race profile sanitizer length beauty others sweep}
python=${PYTHON:-python}
device=${DEVICE:-cuda}
models=SIGMA,Mamba4Rec,ECHO,RecMamba,LinRec,SASRec,GRU4Rec,BERT4Rec,FEARec
sigma=("$python" -m recbole_sigma.cli)
gpu=("$python" benchmarks/gpu.py "--device=$device" "--data_path=$data" --dataset=amazon-beauty)
run=(--show_progress=False "--data_path=$data" --checkpoint_dir="$out/saved")
mkdir -p "$out" || exit 2
failed=()

commands() {
    case $1 in
        env) "${sigma[@]}" env && "${sigma[@]}" env --json >"$out/env.json" ;;
        tests) make cuda BIN="$(dirname "$(command -v "$python")")" ;;
        ratio) "${gpu[@]}" --models=SIGMA,Mamba4Rec,released:SIGMA --length_ratio=1.25,2,4,8,100 --out="$out/ratio.json" ;;
        race) "${gpu[@]}" --epochs=2 --out="$out/race.json" ;;
        profile) "${gpu[@]}" --profile=SIGMA --out="$out/profile.json" &&
            "${gpu[@]}" --profile=released:SIGMA --out="$out/profile-released.json" ;;
        sanitizer) compute-sanitizer --error-exitcode=1 "${sigma[@]}" train --model=SIGMA --dataset=ml-100k --epochs=1 \
            --MAX_ITEM_LIST_LENGTH=10 '--user_inter_num_interval=[0,25]' --checkpoint_dir="$out/saved" ;;
        length) "$python" benchmarks/length.py "--device=$device" --rounds=1 --csv="$out/length.csv" ;;
        beauty) "${sigma[@]}" compare "--models=$models" --datasets=amazon-beauty --seeds=5 --jobs=4 "${run[@]}" --out="$out/beauty" ;;
        others) "${sigma[@]}" compare "--models=$models" --datasets=amazon-sports-outdoors,yelp --seeds=3 --jobs=4 "${run[@]}" \
            --out="$out/others" ;;
        sweep) "${sigma[@]}" tune --model=SIGMA --dataset=amazon-beauty --params_file=hyper.test --tool=ray --jobs=4 \
            --gpus_per_trial=0.25 --epochs=60 "${run[@]}" ;;
        *) echo "on_gpu.sh: no step $1" >&2 && return 2 ;;
    esac
}

for step in $steps; do
    echo "== $step"
    began=$SECONDS
    commands "$step" 2>&1 | tee "$out/$step.log" || failed+=("$step")
    echo "== $step: $((SECONDS - began)) s"
done
((${#failed[@]} == 0)) || { echo "failed: ${failed[*]}" >&2 && exit 1; }
