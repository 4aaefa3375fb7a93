"""What each network sees: recipes, the stream of batches, evaluation views."""
