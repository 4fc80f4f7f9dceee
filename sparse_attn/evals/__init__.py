"""Tasks and their scores: what a model is asked, and whether the answer is right. Sees a small protocol, no model class."""
