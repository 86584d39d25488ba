"""How the ranks of a run are started, watched, ended, and started again. Needs neither torch nor deepspeed."""
