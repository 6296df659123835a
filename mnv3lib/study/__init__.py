"""What the notebooks ask of many runs."""
