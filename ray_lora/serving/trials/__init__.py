"""Versions compared while they serve: splits, shadows, what was counted of each."""
