"""The verb ``study``: several ways to train are compared, over seeds and on the same examples."""
