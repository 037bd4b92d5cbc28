"""Layers whose weights are held in few bits; `ray_lora.bases.quantised` puts them into a base."""
