"""What a tuned model makes of prompts."""
