"""The paper: who inherits what (section 3), latent directions, losses and their sum (section 4)."""
