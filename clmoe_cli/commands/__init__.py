"""One file per command; each is a thin layer over a function of `clmoe.stages.pipeline`."""
