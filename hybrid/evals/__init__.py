"""What a trained model is measured by; an evaluation has a spec of its own and is never part of a run's id."""
