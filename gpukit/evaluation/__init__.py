"""What quantising cost, and how important columns of weights are, over windows of a text."""
