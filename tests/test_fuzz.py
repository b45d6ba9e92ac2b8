"""A short run of the fuzzer: files that stages read, damaged at random."""

from __future__ import annotations

import sys

from helpers.project import PROJECT


def test_no_damaged_file_ends_in_a_traceback_a_hang_or_a_wrong_success():
    sys.path.append(str(PROJECT / "benchmarks"))
    import fuzz_files

    quick = ("index of clips", "clip", "manifest", "seed", "adapter", "checkpoint", "EMOPIA")
    summary = fuzz_files.fuzz(60, seed=1, only=lambda kind: kind.startswith(quick))
    assert summary["bad"] == []
    assert summary["ends"]["refused"] > 30
