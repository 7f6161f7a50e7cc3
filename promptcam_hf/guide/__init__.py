"""What a model has learned about its classes, made readable: a vocabulary of traits, an identification key, and a field
guide."""
