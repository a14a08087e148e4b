"""What the demonstrations run: for each method its plans, stages and results."""
