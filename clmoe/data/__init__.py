"""Questions, pictures, prompts and batches."""
