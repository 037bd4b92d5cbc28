"""Adapters on the edge: one graph of a base with adapters as its inputs, or merged into it, and what runs it."""
