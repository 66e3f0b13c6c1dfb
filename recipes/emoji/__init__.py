"""Train the embedded emoji models: autoencoder, two text-to-image pipelines, one scorer."""
