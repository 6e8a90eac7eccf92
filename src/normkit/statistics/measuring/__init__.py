"""Run a model on batches, and gather the moments of its layers' inputs."""
