"""Taking what was learned out of a run, for use elsewhere."""
