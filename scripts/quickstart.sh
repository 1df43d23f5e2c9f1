#!/usr/bin/env bash
# Set-up and the main job: a trained teacher on handwritten digits, a small int8 student, and a report that compares them.
#   bash scripts/quickstart.sh [--config.path.to.key=value ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

use_environment .venv litert
echo "== compressing (about two minutes on two cores)"
python -m scripts.compress --config=configs/digits.py --workdir=runs/digits "$@"
echo "== done: open runs/digits/report.html"
