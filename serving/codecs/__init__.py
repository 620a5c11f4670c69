"""Wire formats: from request bodies to images, from predictions to response bodies."""
