"""Tuned weights in the layouts of other tools, with a model card."""
