# Sourced by the other scripts: creates a virtual environment with leanax's requirements, and keeps it up to date.
# Needs only Python 3.11 or newer with its venv module.

# Prints the first working interpreter, newest first. A name on PATH may be the shim of a version manager without that
# version, or a Python without its venv module.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"
      return 0
    fi
  done
  {
    echo "leanax needs Python 3.11 or newer with its venv module; none of these runs: ${PYTHON:-python3.13 python3.12 python3.11 python3 python}."
    echo "On Debian or Ubuntu: sudo apt-get install python3 python3-venv. Or name one yourself: PYTHON=/path/to/python3 bash $0"
  } >&2
  return 1
}

# use_environment DIR EXTRAS [REQUIREMENTS]: creates DIR if needed, installs leanax with the extras (and a file of further
# requirements) if these have changed, and puts DIR first on PATH.
use_environment() {
  local folder=$1 extras=$2 more=${3:-} python constraints wanted stamp
  if ! "$folder/bin/python" -c '' >/dev/null 2>&1; then
    python=$(find_python) || return 1
    echo "== making $folder with $("$python" --version)"
    "$python" -m venv --clear "$folder" || return 1
  fi
  constraints=requirements/constraints-3.12.txt
  if "$folder/bin/python" -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then
    constraints=requirements/constraints-3.11.txt
  fi
  stamp="$folder/leanax-$extras.stamp"
  wanted=$(cksum setup.py "$constraints" $more; pwd)
  if [ "$wanted" != "$(cat "$stamp" 2>/dev/null)" ]; then
    echo "== installing leanax[$extras] with $constraints (a few minutes the first time)"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
      --constraint "$constraints" ${more:+--requirement "$more"} --editable ".[$extras]" || return 1
    echo "$wanted" >"$stamp"
  fi
  PATH="$PWD/$folder/bin:$PATH"
}
