"""The pass: what a plan describes is read, computed and written, a few slabs under way at a time."""
