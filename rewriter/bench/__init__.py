"""Times a network, a whole denoising step or a whole pipeline in every way that there is of running it."""
