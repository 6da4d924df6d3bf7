"""What quantising cost: perplexity, and the divergence of two models, over windows of a text."""
