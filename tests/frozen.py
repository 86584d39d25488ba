"""Imported last by the process that ranks are forked from: what is there by then is never garbage.

A rank's collections would go through all of it, some million objects, and copy every page of it that they touch; runs
collect garbage on purpose, several times each. What a rank makes itself is collected as ever.
"""

import gc

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("llama")  # the first call of a process compiles a thousand patterns
gc.collect()
gc.freeze()
