"""Training on Ray: what is checked before it starts, the packs, their workers, and the actor between."""
