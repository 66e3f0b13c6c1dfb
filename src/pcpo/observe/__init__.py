"""What a run tells the outside: events, terminal, trackers and the report."""
