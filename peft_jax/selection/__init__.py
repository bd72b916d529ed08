"""Which weights of a backbone a task asks for: scores, what is chosen by them, and its file."""
