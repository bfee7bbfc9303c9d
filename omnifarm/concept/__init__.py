"""What is learned: concepts and their data, soft tokens, prompts, training examples, artifacts."""
