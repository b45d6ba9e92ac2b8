"""Imported first by every stage: puts ../src first on the import path, checks params.yaml before torch is imported.

A queued experiment is a copy of the project with its own code.
"""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports that follow ends without a traceback

from music_ddpo.core.errors import UserError
from music_ddpo.core.params_file import load

try:
    load()
except UserError as error:
    sys.exit(f"Error: {error}")
