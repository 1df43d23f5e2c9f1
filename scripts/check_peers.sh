#!/usr/bin/env bash
# Compares our methods with other libraries' own code, in an environment of its own (torch and qwix are large).
#   bash scripts/check_peers.sh [pytest arguments ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

use_environment .venv-peers litert,onnx,test requirements/peers.txt
# What other packages of its requirements contradict, and works beside them all the same.
python -c 'import litert_converter' 2>/dev/null ||
  python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements/peers-alone.txt
python -m pytest -q -m peers tests/peers "$@"
