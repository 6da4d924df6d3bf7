"""The verbs: what the command line and the library's face call, each a straight line."""
