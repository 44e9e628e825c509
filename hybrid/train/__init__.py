"""Training: one loop for every model, its schedule, its optimiser, its checkpoints."""
