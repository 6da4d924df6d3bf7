"""What lies elsewhere: the Hugging Face hub."""
