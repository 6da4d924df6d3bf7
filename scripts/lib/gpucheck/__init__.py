"""What scripts/gpu_check is made of; it says what runs in which process."""
