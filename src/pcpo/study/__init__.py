"""Studies: many runs that differ in a stated way, run by any number of processes, and what they show together."""
