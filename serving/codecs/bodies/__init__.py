"""Request bodies: decompression, JSON, forms, and the numbers or picture files in them."""
