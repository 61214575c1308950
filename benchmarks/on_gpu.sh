#!/usr/bin/env bash
# Measures everything that needs a GPU, the most important first, and writes it into one directory:
#
#     benchmarks/on_gpu.sh DATA [OUT] [STEP ...]
#
# DATA is the directory of amazon-beauty, amazon-sports-outdoors and yelp; OUT is results/cuda by default.
# STEPs (all of them if none is named): env tests ratio race profile sanitizer length beauty others sweep.
# A step that fails is reported, and the next one starts. Calling the script again measures again, but resumes runs.
# PYTHON names the Python to use. DEVICE=cpu tries what can be tried without a GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
data=${1:?give the directory of the data sets}
out=${2:-results/cuda}
shift $(($# < 2 ? $# : 2))
steps=${*:-env tests ratio race profile sanitizer length beauty others sweep}
python=${PYTHON:-python}
device=${DEVICE:-cuda}
models=SIGMA,Mamba4Rec,ECHO,RecMamba,LinRec,SASRec,GRU4Rec,BERT4Rec,FEARec
sigma=("$python" -m recbole_sigma.cli)
epoch=("$python" benchmarks/epoch.py "--device=$device" "--data_path=$data" --dataset=amazon-beauty)
rivals=released:SIGMA,released:Mamba4Rec,recbole:SASRec
run=(--show_progress=False "--data_path=$data" --checkpoint_dir="$out/saved")
mkdir -p "$out" || exit 2
failed=()

commands() {
    case $1 in
        env) "${sigma[@]}" env && "${sigma[@]}" env --json >"$out/env.json" ;;
        tests) make cuda BIN="$(dirname "$(command -v "$python")")" ;;
        ratio) "${epoch[@]}" --models=SIGMA,Mamba4Rec,released:SIGMA --rival=released:SIGMA \
            --length_ratio=1.25,2,4,8,100 --out="$out/ratio.json" ;;
        race) "${epoch[@]}" --models="SIGMA,SIGMA:sequence,Mamba4Rec,Mamba4Rec:sequence,SASRec,$rivals" --rival=released:SIGMA --epochs=2 --out="$out/race.json" ;;
        profile) "${epoch[@]}" --profile=SIGMA --out="$out/profile.json" &&
            "${epoch[@]}" --profile=released:SIGMA --out="$out/profile-released.json" ;;
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
    started=$SECONDS
    commands "$step" 2>&1 | tee "$out/$step.log" || failed+=("$step")
    echo "== $step: $((SECONDS - started)) s"
done
((${#failed[@]} == 0)) || { echo "failed: ${failed[*]}" >&2 && exit 1; }
