"""The paper's printed numbers (`printed.json`), and what our specs give in their place."""
