"""How loss depends on parameters, tokens and compute: fits, their uncertainty, and what they depend on.

`analysis.scaling.study` has the two entries, `isoflop` and `parametric`, with the words of the command line.
"""
