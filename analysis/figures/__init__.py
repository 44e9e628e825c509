"""Figures of requests and of the paper: numbers first (`numbers`, `recorded`), then pictures as data, then their looks.

What can be drawn of a request: `kinds`. The paper's figures: `catalogue`, from print: `paper`. A `picture` is data;
`draw` gives it its looks, with `labels`. `command` is the command line, and the only part that is imported with it.
"""
