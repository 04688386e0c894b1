"""The stages of the miniature's training, in order: vae, encoders, base. Each says what one step is."""
