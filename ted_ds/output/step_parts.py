"""What the time of a step is divided into, as reports say it."""

DATA, COMMUNICATION = "data", "communication"
TEACHER, FORWARD, LOSSES = "teacher", "forward", "losses"
BACKWARD, OPTIMIZER = "backward", "optimizer"
OTHER = "other"
PARTS = (DATA, TEACHER, FORWARD, LOSSES, BACKWARD, OPTIMIZER, COMMUNICATION, OTHER)
"""``forward`` is that of what trains, in Stage I with the frozen model under it; ``data`` is the wait for a batch and
its way to the device; ``communication`` is the wait for other ranks and for what they send."""
