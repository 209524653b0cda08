"""Tools around a run: environment checks, fault injection, and estimates of memory and time."""
