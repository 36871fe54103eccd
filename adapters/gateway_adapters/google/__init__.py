"""Google's models: through the Gemini API with a key, and through Vertex AI with a service account."""

from gateway_adapters.google.adapter import Google
from gateway_adapters.google.claude import VertexAnthropic
from gateway_adapters.google.vertex import Vertex

__all__ = ["Google", "Vertex", "VertexAnthropic"]
