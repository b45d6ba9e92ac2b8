"""Makes a stage import the package in ../src: a queued experiment is a copy of the project with its own code."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
