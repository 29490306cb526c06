"""From labels to prompts: what a recipe says of tags and captions, draw by draw."""
