"""Which runs exist, where they run, and what became of them."""
