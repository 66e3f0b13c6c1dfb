"""What a run needs before it runs: samples, model calls, memory, time, and what to change where it does not fit."""
