#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that only a GPU can tell, in one command and less than ten minutes:
#
#   benchmarks/gpu_check.sh OUTPUT [--only PART] [--wheels FOLDER]
#
# builds pydet with its CUDA kernels in place, runs the tests on the device, the torch-free kernel
# tests under compute-sanitizer, then the benchmarks. Each part writes OUTPUT/PART.log and, as its
# stamp, OUTPUT/PART.json; a second call does only what has not passed for these sources yet, and
# OUTPUT/summary.json has all stamps. `--wheels` is a folder of packages for what this Python lacks:
# they go to OUTPUT/site, and no index is asked. PYTHON names the interpreter (default: python3).
# shellcheck disable=SC2329 # parts are called by their names
set -uo pipefail

PARTS=(packages build kernels tests memcheck racecheck initcheck synccheck benchmarks)
# Seconds a part may take; together less than ten minutes.
declare -A LIMITS=([packages]=20 [build]=200 [kernels]=90 [tests]=90 [memcheck]=25 [racecheck]=25
  [initcheck]=25 [synccheck]=25 [benchmarks]=95)
NEEDED=(torch numpy PIL safetensors defusedxml yaml setuptools wheel pybind11 ninja pytest pytest_timeout
  hypothesis)

usage() {
  echo "usage: benchmarks/gpu_check.sh OUTPUT [--only PART] [--wheels FOLDER]; PART is one of ${PARTS[*]}" >&2
  exit 2
}

script=$(realpath -- "$0")
output="" only="" wheels="" alone=""
while (($#)); do
  case "$1" in
    --only | --wheels | --alone) # --alone: a part without limit and stamp; the script's own
      (($# > 1)) || usage
      case "$1" in
        --only) only=$2 ;;
        --alone) alone=$2 ;;
        --wheels) wheels=$(realpath -- "$2") ;;
      esac
      shift
      ;;
    -*) usage ;;
    *) output=$1 ;;
  esac
  shift
done
[[ -n $output ]] || usage
[[ -z $only || " ${PARTS[*]} " == *" $only "* ]] || usage
mkdir -p -- "$output"
output=$(realpath -- "$output")
cd "$(dirname "$0")/.." || exit 2

python=${PYTHON:-python3}
native=$output/native # CMake's build folder
export PYTHONPATH=$output/site${PYTHONPATH:+:$PYTHONPATH}
export PYDET_CUDA=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} HYPOTHESIS_PROFILE=${HYPOTHESIS_PROFILE:-dev}

# A part ends with `skip` or `fail` and one sentence, or with the status of its last command.
skip() {
  echo "skipped: $*"
  exit 77
}
fail() {
  echo "failed: $*"
  exit 1
}
has_module() {
  "$python" -c "import importlib.util as u; raise SystemExit(u.find_spec('$1') is None)"
}
need_gpu() {
  [[ $PYDET_CHECKED == *'"torch"'* ]] || skip "$python has no torch"
  [[ $PYDET_CHECKED != *'"device": null'* ]] || skip "no GPU is visible to torch"
}

packages() {
  local missing=() name
  for name in "${NEEDED[@]}"; do has_module "$name" || missing+=("$name"); done
  ((${#missing[@]})) || exit 0
  [[ -n $wheels ]] || fail "$python lacks ${missing[*]}, and no --wheels is given"
  missing=("${missing[@]/#PIL/pillow}")
  missing=("${missing[@]/#yaml/PyYAML}")
  "$python" -m pip install --quiet --no-index --no-deps --find-links "$wheels" \
    --target "$output/site" "${missing[@]//_/-}" || fail "$wheels lacks one of ${missing[*]}"
}

build() {
  "$python" setup.py build_ext --inplace || fail "the extension does not build; the reason is above"
  "$python" -m pydet info
}

kernels() {
  command -v cmake >/dev/null || skip "there is no cmake"
  local nvcc=${CUDA_HOME:+$CUDA_HOME/bin/}nvcc
  command -v "$nvcc" >/dev/null || skip "there is no nvcc on the PATH or in CUDA_HOME"
  local architecture=90
  command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1 && architecture=native
  cmake -S . -B "$native" -DPYDET_CUDA=ON -DCMAKE_CUDA_COMPILER="$(command -v "$nvcc")" \
    -DCMAKE_CUDA_ARCHITECTURES="${CUDAARCHS:-$architecture}" || fail "cmake; the reason is above"
  cmake --build "$native" --parallel "$MAX_JOBS" --target gpu_tests ||
    fail "the C++ tests do not build for a GPU; the reason is above"
  local program
  for program in "$native"/tests/cpp/gpu_test_*; do
    echo "$program"
    "$program"
    case $? in
      0) ;;
      77) skip "the programs are built, but there is no CUDA device to run them" ;;
      *) fail "$(basename "$program")" ;;
    esac
  done
}

tests() {
  need_gpu
  local spread=()
  has_module xdist && spread=(--numprocesses 8)
  # Each test that takes a device has it in its name.
  "$python" -m pytest -q -k cuda "${spread[@]}" tests/ops tests/models tests/test_cuda_graphs.py \
    tests/test_postprocess.py
}

sanitize() {
  need_gpu
  local sanitizer=${CUDA_HOME:+$CUDA_HOME/bin/}compute-sanitizer program
  command -v "$sanitizer" >/dev/null || skip "there is no compute-sanitizer"
  local programs=("$native"/tests/cpp/gpu_test_*)
  [[ -x ${programs[0]} ]] || skip "the part 'kernels' has built no programs"
  for program in "${programs[@]}"; do
    echo "$program"
    "$sanitizer" --tool "$1" --error-exitcode 9 "$program" || fail "$1 of $(basename "$program")"
  done
}
memcheck() { sanitize memcheck; }
racecheck() { sanitize racecheck; }
initcheck() { sanitize initcheck; }
synccheck() { sanitize synccheck; }

benchmarks() {
  need_gpu
  mkdir -p "$output/results"
  local file name begun=$output/benchmarks.begun
  for file in benchmarks/bench_*.py; do
    name=$(basename "$file" .py)
    name=${name#bench_}
    [[ -e $output/results/$name.done-$sources ]] && continue # by a call that ran out of time
    touch "$begun"
    "$python" -m benchmarks --device cuda --seconds 0.3 "$name" || fail "the benchmark of $name"
    find benchmarks/results -name "$name.json" -newer "$begun" -exec cp {} "$output/results" \;
    touch "$output/results/$name.done-$sources"
  done
}

# --- running the parts ---------------------------------------------------------------------------

# What the stamps are for: the sources as they are.
sources=$(find csrc pydet tests benchmarks setup.py CMakeLists.txt -type f -not -name '*.so' \
  -not -name '*.pyc' -not -path 'benchmarks/results/*' -print0 | sort -z | xargs -0 sha256sum |
  sha256sum | cut -c1-16)

# Asked once: importing torch takes seconds.
about() {
  "$python" - <<'END'
import json, platform
try:
    import torch
    about = {"torch": torch.__version__, "cuda": torch.version.cuda}
    about["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
except ImportError:
    about = {"device": None}
print(json.dumps({"python": platform.python_version(), **about}))
END
}

stamp() { # part, status, seconds, sentence
  "$python" - "$@" "$sources" "$PYDET_CHECKED" >"$output/$1.json" <<'END'
import json, sys
part, status, seconds, sentence, sources, about = sys.argv[1:]
stamp = {"part": part, "status": status, "seconds": int(seconds), "note": sentence}
print(json.dumps({**stamp, "sources": sources, **json.loads(about)}, indent=1))
END
}

run_part() {
  local part=$1 begun=$SECONDS status=failed code sentence log=$output/$1.log
  if [[ -z $only ]] && grep -qs '"passed"' "$output/$part.json" &&
    grep -qs "\"$sources\"" "$output/$part.json"; then
    echo "$part: passed before"
    return 0
  fi
  timeout --kill-after=5 "${LIMITS[$part]}" "$script" "$output" --alone "$part" \
    ${wheels:+--wheels "$wheels"} >"$log" 2>&1 </dev/null
  code=$?
  sentence=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1)
  case $code in
    0) status=passed ;;
    77) status=skipped ;;
    124 | 137) sentence="failed: it took more than ${LIMITS[$part]} s" ;;
  esac
  stamp "$part" "$status" "$((SECONDS - begun))" "$sentence"
  echo "$part: $status in $((SECONDS - begun)) s${sentence:+ ($sentence)}"
  [[ $status != failed ]]
}

if [[ -n $alone ]]; then
  "$alone"
  exit
fi
PYDET_CHECKED=$(about)
export PYDET_CHECKED
failures=0
for part in "${PARTS[@]}"; do
  [[ -z $only || $part == "$only" ]] || continue
  run_part "$part" || failures=$((failures + 1))
done
"$python" - "$output" "${PARTS[@]}" <<'END'
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
files = [folder / f"{part}.json" for part in sys.argv[2:]]
stamps = [json.loads(file.read_text()) for file in files if file.is_file()]
(folder / "summary.json").write_text(json.dumps(stamps, indent=1) + "\n")
END
exit $((failures > 0))
