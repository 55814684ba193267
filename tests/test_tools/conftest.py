from __future__ import annotations

import sys
from pathlib import Path

# the tools import each other as scripts do
sys.path.append(str(Path(__file__).parents[2] / 'tools'))
