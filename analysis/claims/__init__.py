"""The 39 claims of arXiv 2510.04800 as predicates over records: the paper's printed numbers, or those of a store."""
