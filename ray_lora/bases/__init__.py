"""Bases: frozen pretrained models, where they come from, what is known of them. They know no adapters and no tasks."""
