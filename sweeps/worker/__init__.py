"""Execute one run, or one trunk: claim it, keep its lease, train, record. The same code under every launcher.

`runs.run_one` and `trunks.run_trunk` are what a launcher calls, in a process of its own; `evaluation` and `generation`
use what a run came to. What becomes of it is told by the exit code too, so that a scheduler's own state is true.

Only here is hybrid's training reached, inside the calls: importing these modules loads no torch.
"""
