"""The base model and the mixture on it."""
