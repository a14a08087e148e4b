"""Dataset builders and the simulated cohort (not part of the installed package)."""
