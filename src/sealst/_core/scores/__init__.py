"""Scores of predictions, of retrieval and of slides, and what they are compared with."""
