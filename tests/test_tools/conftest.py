from __future__ import annotations

import sys
from pathlib import Path

# the tools are modules: `tools.demo`
sys.path.append(str(Path(__file__).parents[2]))
