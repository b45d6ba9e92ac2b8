"""Execution: devices, batches, processes, signals. It changes floating-point rounding at most, never what is done."""
