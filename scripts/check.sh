#!/usr/bin/env bash
# Set-up, lint, types and tests: all must pass before a change is merged.
#   bash scripts/check.sh [--all] [pytest arguments ...]
# --all adds the slow tests, and compiles all of them as users do; without it XLA compiles quickly, to slower code, but
# for tests marked `exact`.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
source scripts/environment.sh

all=
if [ "${1:-}" = --all ]; then
  all=1
  shift
fi
use_environment .venv litert,onnx,test || exit 1

failed=()
step() {
  local name=$1 start=$SECONDS
  shift
  echo "== $name"
  if "$@"; then
    echo "== $name: good ($((SECONDS - start)) s)"
  else
    echo "== $name: FAILED ($((SECONDS - start)) s)"
    failed+=("$name")
  fi
}

step "lint" ruff check .
step "format" ruff format --check .
step "types" pyrefly check
# A file's tests stay in one process; compilation uses one core, so two processes take half the time.
tests() {
  python -m pytest -q --durations=15 --numprocesses=auto --maxprocesses=4 --dist=loadfile "$@"
}
exact_tests() {
  tests "$@"
  case $? in 0 | 5) return 0 ;; *) return 1 ;; esac # 5: none of them is among the arguments
}
if [ "$all" ]; then
  step "tests" tests -m "not peers" "$@"
else
  LEANAX_QUICK_COMPILE=1 step "tests" tests -m "not slow and not peers and not exact" "$@"
  [ $# -gt 0 ] || mapfile -t exact < <(grep -rl --include='*_test.py' --include='test_*.py' 'mark\.exact' tests)
  step "tests of equal bits" exact_tests -m "exact and not slow" "${@:-${exact[@]}}"
fi

if [ ${#failed[@]} -gt 0 ]; then
  printf '== not good:'
  printf ' %s' "${failed[@]}"
  echo
  exit 1
fi
echo "== all good"
