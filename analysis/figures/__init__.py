"""Figures of requests and of the paper: numbers first (`numbers`, `recorded`), then pictures as data, then their looks.

What can be drawn of a request: `kinds`. The paper's figures: `catalogue`, from print: `paper`. A `picture` is data;
`draw` makes files of it (`page`, `panels`, `axes`, `labels`, `looks`). Only `command` and `catalogue` are imported
with the command line.
"""
