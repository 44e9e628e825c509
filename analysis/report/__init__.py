"""One HTML file of what a store says: what was asked for and what came of it, with all that is needed to believe it.

What it says is `data` (with `cost`, `runs`, `words` and `plots`), how it looks `page`, with style.css and script.js.
"""
