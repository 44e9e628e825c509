"""What Hydra wants in a package of this name: a sweeper (which cells) and a launcher (where)."""
