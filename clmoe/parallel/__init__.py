"""Several processes, one command: launching them, who leads, and what each reports."""
