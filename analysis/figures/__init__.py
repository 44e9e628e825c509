"""Figures, from records or from what the paper prints."""
