"""Wire formats: request bodies to images, predictions to response bodies."""
