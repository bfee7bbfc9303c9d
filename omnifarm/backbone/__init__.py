"""The unified understanding-and-generation backbone (BAGEL): read, run, and differentiate through it, never change it."""
