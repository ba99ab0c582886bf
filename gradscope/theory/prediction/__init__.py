"""What a real model should do to its signal, by theory: no training step, and no memory for its weights is needed."""
