"""The command line of clmoe: the only package that knows a terminal."""
