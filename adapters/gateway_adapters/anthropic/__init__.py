"""The adapter of Anthropic's Messages API.

adapter.py    what the gateway asks of an adapter
request.py    a chat completion request as one of Anthropic's; with chat.py, messages.py, content.py, tools.py
stream.py     Anthropic's events as chunks of a chat completion; with customs.py
whole.py      an answer that is no stream; with answer.py, which both have in common
names.py      names and ids that Anthropic would refuse
families.py   what the models of which family take: families.toml
"""

from gateway_adapters.anthropic.adapter import Anthropic

__all__ = ["Anthropic"]
