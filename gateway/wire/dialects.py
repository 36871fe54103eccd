"""The wire formats a caller or a provider may speak, and the few facts that tell them apart."""

from enum import StrEnum


class Dialect(StrEnum):
    """A wire format. `OPENAI_OTHER` is any `/v1/*` path that is relayed without being understood."""

    OPENAI_CHAT = "openai.chat"
    OPENAI_COMPLETIONS = "openai.completions"
    OPENAI_RESPONSES = "openai.responses"
    OPENAI_EMBEDDINGS = "openai.embeddings"
    OPENAI_OTHER = "openai.other"
    ANTHROPIC_MESSAGES = "anthropic.messages"
    GEMINI_GENERATE = "gemini.generate"
