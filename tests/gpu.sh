#!/usr/bin/env bash
# What only a GPU can show, in under ten minutes: the cuda half of the tests, float16, NCCL with one rank, timings as
# ratios, then as many runs of tier `paper` as fit. Every part runs whatever becomes of the others, and a line on each
# ends the log.
#
#   tests/gpu.sh [--dry-run] [FOLDER]
#
# FOLDER (default: _build/gpu) receives the logs and, under `results`, the records. --dry-run does the same on the CPU,
# with `smoke` in place of `paper`, bfloat16 in place of float16, gloo in place of NCCL, and one round of each timing; a
# part may take four times as long, because the machine may be busy. PYTHON names the interpreter, COMPANION_DATA the
# images that runs of tier `paper` need, CELLS those runs (experiments with their options, one a line), SECONDS_LEFT the
# time for them.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
DEVICE=cuda TIER=paper ROUNDS=5 PRECISION=float16 METHODS="none cka_sr" PATIENCE=1
DEFAULT_CELLS="dense_cifar10 --seeds 0
random_masks --methods random random+cka_sr --sparsities 0.95 --seeds 0"
if [ "${1:-}" = --dry-run ]; then
  DEVICE=cpu TIER=smoke ROUNDS=1 PRECISION=bfloat16 METHODS=cka_sr PATIENCE=4 DEFAULT_CELLS="dense_cifar10 --seeds 0"
  shift
fi
OUT=$(mkdir -p "${1:-_build/gpu}" && cd "${1:-_build/gpu}" && pwd)
RESULTS=$OUT/results
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 COMPANION_WORK=$OUT/work
CELLS=${CELLS:-$DEFAULT_CELLS}

if [ $DEVICE = cuda ] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "There is no CUDA device here; try: tests/gpu.sh --dry-run" >&2
  exit 2
fi

summary="" failed=0
part() { # part NAME SECONDS COMMAND...: run it, keep its output in FOLDER/NAME.log
  local name=$1 seconds=$(($2 * PATIENCE)) begun end
  shift 2
  echo "==== $name: $*"
  begun=$(date +%s)
  timeout --kill-after=10 "$seconds" "$@" >"$OUT/$name.log" 2>&1
  end=$?
  tail -n 12 "$OUT/$name.log"
  case $end in 0) end=passed ;; 124 | 137) end="stopped after $seconds s" failed=1 ;; *) end="FAILED ($end)" failed=1 ;; esac
  summary+=$(printf '%-12s %s in %d s' "$name" "$end" $(($(date +%s) - begun)))$'\n'
}
run() { "$PYTHON" -m companion.experiments run "$@" --device $DEVICE --results "$RESULTS" --quiet; }
export -f run
export PYTHON DEVICE RESULTS PRECISION

if [ $DEVICE = cuda ]; then
  part tests 240 "$PYTHON" -m pytest tests -q -rf -m "not (pages or long)" -k cuda -p no:cacheprovider
else
  part tests 240 "$PYTHON" -m pytest tests/test_fake_cuda.py -q -rf -p no:cacheprovider
fi
part float16 90 bash -c "run dense_penalties --tier smoke --methods $METHODS --seeds 0 --precision $PRECISION"
part nccl 120 "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node=1 -m companion.experiments run \
  random_masks --tier smoke --methods random --seeds 0 --device $DEVICE --results "$OUT/one_rank" --quiet
part penalties 120 "$PYTHON" tests/benchmarks/bench_penalties.py --rounds $ROUNDS --device $DEVICE
part pruning 60 "$PYTHON" tests/benchmarks/bench_pruning.py --rounds $ROUNDS --device $DEVICE
while read -r cell; do
  left=$((${SECONDS_LEFT:-600} - SECONDS - 15))
  [ $left -lt 30 ] && { summary+="not run, no time left: $cell"$'\n'; continue; }
  # shellcheck disable=SC2086 # the words of a cell are its options
  part "cell_${cell%% *}" $((left / PATIENCE)) bash -c "run $cell --tier $TIER"
done <<<"$CELLS"

printf '\n%s' "$summary" | tee "$OUT/summary.txt"
exit $failed
