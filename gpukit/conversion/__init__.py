"""The pass: what a plan describes is read, computed and written, some slabs at a time."""
