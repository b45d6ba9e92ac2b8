"""Comes first in a stage: it gets the package in ../src, and params.yaml is checked before torch is imported.

A queued experiment is a copy of the project with its own code.
"""

import signal
import sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules are imported ends without a traceback
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from music_ddpo.core.errors import UserError  # noqa: E402
from music_ddpo.core.params_file import load  # noqa: E402

try:
    load()
except UserError as error:
    sys.exit(f"Error: {error}")
