"""What was measured, as tables and files."""
