"""Measurements; they record and never judge. Every ratio comes from one run on one machine.

They ask the examples' models and tasks, so the examples' folders are on the path.
"""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path += [str(EXAMPLES), str(EXAMPLES / "base_model")]
