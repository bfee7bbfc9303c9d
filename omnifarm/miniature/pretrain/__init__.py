"""Pre-training of the miniature: world to pictures, pictures to codec and vision tower, everything to the language model."""
