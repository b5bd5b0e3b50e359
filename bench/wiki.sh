#!/usr/bin/env bash
# Knowledge Inheritance against plain pre-training on Wikipedia: a causal and a masked student, one seed each.
# Run from the root of the repository with ../shared beside it; about 40 minutes on two cores. Resumable: run it again.
set -eu
for objective in causal masked; do
    (for run in teacher plain ki; do OMP_NUM_THREADS=1 .venv/bin/bequest train "bench/wiki/$objective-$run.yaml"; done) >"runs/wiki-$objective.log" 2>&1 &
done
wait
.venv/bin/python bench/wiki_table.py
