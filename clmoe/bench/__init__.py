"""Side-by-side measurements on one machine: a layer, a training step, answering questions."""
