"""A model that speaks: loading, sampling, text as it becomes whole."""
