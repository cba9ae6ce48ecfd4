"""Scores, exactly as the official scorers define them."""
