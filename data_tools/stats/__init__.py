"""What a recipe makes of its data: which buckets its samples fill, and which prompts they are trained with."""
