"""Measuring what training did: clips, judgements, statistics, tables, model cards."""
