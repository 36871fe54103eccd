"""AI Gateway: a fast, exact, OpenAI-compatible proxy in front of every LLM provider."""

__version__ = "0.1.0"
