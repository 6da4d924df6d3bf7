"""What a model becomes, decided before anything is written: types, metadata, files."""
