"""What a model that lies on disk is used for here: text is sampled from it, and it is evaluated."""
