"""gapkd: distil a big StyleGAN into a small one, and see why it works."""
