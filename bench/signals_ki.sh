#!/usr/bin/env bash
# Knowledge Inheritance from a live teacher and from stores of what it said, at equal tokens; one seed each (SEED=1 for another).
# Run from the root of the repository with ../shared beside it, after `bequest train bench/signals/teacher.yaml`;
# about 35 minutes on two cores, resumable.
set -eu
export SEED=${SEED:-0} OMP_NUM_THREADS=1
one() {
    name=$1 && shift
    out=runs/signals/$name
    mkdir -p "$out"
    recipe=(bench/signals/ki.yaml "name=$name" "teachers.teacher.store=$out/store" "seed=$SEED" "$@")
    case $name in
        live) recipe+=("teachers.teacher.store=''") ;;
        plain) recipe+=("teachers.teacher.store=''" method=plain) ;;
        *) .venv/bin/bequest teach "${recipe[@]}" ;;
    esac
    .venv/bin/bequest train "${recipe[@]}" --out "$out/seed-$SEED"
}
export -f one
mkdir -p runs/signals
printf '%s\n' live plain "sampled-50 teach.draws=50" "topk-10 teach.kind=topk teach.keep=10" "sampled-12 teach.draws=12" \
    "topk-32 teach.kind=topk teach.keep=32" "topk-128 teach.kind=topk teach.keep=128" |
    xargs -P 2 -I{} bash -c 'one {} >"runs/signals/$(echo {} | cut -d" " -f1)-$SEED.log" 2>&1'
.venv/bin/python bench/signals_ki_table.py
