"""Searches: configurations as Ray Tune trials that train in packs."""
