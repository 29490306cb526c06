"""What a recipe makes of single samples: their crops and their prompts, draw by draw."""
